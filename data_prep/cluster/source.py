"""The set that was embedded: its samples, each with the rows of the embeddings' file that are of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import display
from dist_train.cluster.rows import Places
from dist_train.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from dist_train.data.tar_folder import is_tar, tars_in
from dist_train.data.tar_samples import Sample, parts_of, read_samples
from dist_train.data.tars import LeftOut
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError, WorkError


class ClusterSource(NamedTuple):
    """A set of shards, or plain tars, whose pictures were embedded.

    Attributes:
        path: of the set, or of its one tar.
        tars: in order.
        manifest: None where the tars have none.
        label_key: key of labels in `.json` files.
    """

    path: Path
    tars: list[Path]
    manifest: Manifest | None
    label_key: str


class Usable(NamedTuple):
    """What the embeddings' rows are in the set as it is now.

    Attributes:
        rows: bool [N]: the row is of the one picture of a sample, which can be trained on.
        not_embedded: samples without a row.
    """

    rows: NDArray[np.bool_]
    not_embedded: int


def open_cluster_source(file: EmbeddingFile, given: Path | None) -> ClusterSource:
    """The set that `file` was made of, by its description or as it is `given`.

    Raises:
        UserError: no set there, or pictures that were cut while they were embedded.
    """
    described = file.description["source"]
    if described.get("align"):
        raise UserError(
            f"embeddings {file.path}: faces were found and aligned while they were embedded, and the pictures of "
            f"{described['path']} are not; make an aligned set with `headcount prep align` and embed that"
        )
    path = (given or Path(described["path"])).absolute()
    way_out = "name the set with --set" if given is None else "correct --set"
    if is_tar(path) and path.is_file():
        tars = [path]
    elif path.is_dir():
        tars = tars_in(path)
    else:
        raise UserError(f"set {path}: not there any more; {way_out}")
    if not tars:
        raise UserError(f"set {path}: no tars in it; expected the set of shards that was embedded, {way_out}")
    manifest = load_manifest(path) if (path / MANIFEST_NAME).is_file() else None
    for shard in manifest.shards if manifest else ():
        if found := shard.size_fault(path):
            raise WorkError(f"set {path}: shard {shard.name}: {found}; get the shard again, or write the set again")
    label_key = (manifest and manifest.label_key) or str(described.get("label_key", "label"))
    return ClusterSource(path, tars, manifest, label_key)


def samples_of(tar: Path, places: Places) -> Iterator[tuple[Sample, list[int]]]:
    """Samples of a tar, each with the rows of its pictures.

    Raises:
        UserError: not a tar.
    """
    own = places.of(display(os.fsencode(tar.name)))
    keys = zip(places.offsets[own].tolist(), places.sizes[own].tolist(), strict=True)
    rows = dict(zip(keys, own.tolist(), strict=True))
    for sample in read_samples(tar):
        if not isinstance(sample, LeftOut):
            pictures = parts_of(sample.members).pictures
            found = [rows.get((picture.offset, picture.size)) for picture in pictures]
            yield sample, [row for row in found if row is not None]


def usable_rows(source: ClusterSource, places: Places, file: EmbeddingFile) -> Usable:
    """Which rows are of a sample of the set.

    Raises:
        UserError: a row's picture is not where it was, so that the set is another one.
    """
    usable = np.zeros(file.count, dtype=bool)
    there = np.zeros(file.count, dtype=bool)
    not_embedded = 0
    for tar in source.tars:
        for sample, rows in samples_of(tar, places):
            there[rows] = True
            parts = parts_of(sample.members)
            usable[rows] = len(parts.pictures) == 1 and parts.clash is None
            not_embedded += not rows
    missing = np.flatnonzero(~there)
    if len(missing):
        row = int(missing[0])
        raise UserError(
            f"embeddings {file.path}: {len(missing):,} of {file.count:,} pictures are not where they were in "
            f"{source.path}, e.g. row {row} at byte {places.offsets[row]} of {places.tars[places.tar[row]]}; the set "
            "has changed since: embed it again, or name the set that was embedded with --set"
        )
    return Usable(usable, not_embedded)
