"""The sets that are to become one: opened, and refused where they do not go together."""

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dist_train.data.counters import Ints
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME, MANIFEST_NAME, Manifest, load_manifest, refuse_overlap
from dist_train.data.survey import adopt_set
from dist_train.errors import UserError, WorkError
from dist_train.runtime.text import first_line

# Classes that a set may have: any number up to the first, and up to so many for each of its samples.
_ALWAYS, _SPARSEST = 1 << 24, 100
_LEAST_BYTES = 2 * tarfile.BLOCKSIZE  # of a sample: a header, and a picture
_PREFIX_DIGITS = 8  # of a set's digest, in front of its keys


class MergeSource(NamedTuple):
    """A set that is merged.

    Attributes:
        path: of the set, resolved.
        name: the end of its path that tells it from the others.
        manifest: what is in it.
        label_key: key of the label in samples that have no `.cls`.
        names: of its identities [num_classes], null where there is none.
        counts: pictures of its identities [num_classes]; None where no table says it.
        key_prefix: what tells its keys from those of other sets. It follows from the content, not from where it lies.
    """

    path: Path
    name: str
    manifest: Manifest
    label_key: str
    names: pa.Array
    counts: Ints | None
    key_prefix: str


def open_merge_sources(paths: Sequence[Path], out: Path, label_key: str) -> list[MergeSource]:
    """Open the sets at `paths` that are to become one at `out`; tars without a manifest get one, as on every first use.

    Raises:
        UserError: fewer than two sets, one of them twice or around `out`, a damaged one, or pictures of two sizes.
        WorkError: a shard is missing or was cut off.
    """
    if len(paths) < 2:
        raise UserError("expected at least two sets and OUT: headcount prep merge A B OUT")
    places = [path.resolve() for path in paths]
    refuse_sets(paths, out)
    sources = [open_source(*each, label_key) for each in zip(places, shortest_names(places), strict=True)]
    _refuse_unlike(sources)
    return sources


def open_source(place: Path, name: str, label_key: str) -> MergeSource:
    """Open the set at the resolved path `place`; tars without a manifest get one.

    Raises:
        UserError: no set, a damaged one, or one with more identities than its shards can have.
        WorkError: a shard is missing or was cut off.
    """
    has_manifest = (place / MANIFEST_NAME).exists()
    manifest = load_manifest(place) if has_manifest else adopt_set(place, label_key)
    _check_sizes(place, manifest)
    _check_classes(place, manifest)
    names, counts = _read_table(place, manifest)
    prefix = f"{manifest.digest[:_PREFIX_DIGITS]}-"
    return MergeSource(place, name, manifest, manifest.label_key or label_key, names, counts, prefix)


def shortest_names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths that tell them apart, all of as many parts."""
    parts = 1
    while len({place.parts[-parts:] for place in places}) < len(places):
        parts += 1
    return ["/".join(place.parts[-parts:]).lstrip("/") for place in places]


def refuse_sets(paths: Sequence[Path], out: Path) -> None:
    """Refuse sets of which one is given twice, or is `out`, around it or in it.

    Raises:
        UserError: there is one.
    """
    places = [path.resolve() for path in paths]
    for number, (path, place) in enumerate(zip(paths, places, strict=True)):
        if place in places[:number]:
            raise UserError(f"{path}: given twice, also as {paths[places.index(place)]}; give each set once")
        refuse_overlap("OUT", out, path)


def _check_sizes(place: Path, manifest: Manifest) -> None:
    """Whether every shard is there in full: seconds now, where the work may take hours."""
    for shard in manifest.shards:
        if found := shard.size_fault(place):
            raise WorkError(f"{place}: shard {shard.name}: {found}; get the shard again, or write the set again")


def _check_classes(place: Path, manifest: Manifest) -> None:
    """Whether there may be so many identities: tables of them are held in memory."""
    samples = sum(shard.bytes for shard in manifest.shards) // _LEAST_BYTES
    if manifest.num_classes > max(_ALWAYS, _SPARSEST * samples):
        raise UserError(
            f"{place / MANIFEST_NAME}: {manifest.num_classes:,} identities, but at most {samples:,} pictures can be in "
            "its shards; write the set again"
        )


def _read_table(place: Path, manifest: Manifest) -> tuple[pa.Array, Ints | None]:
    """Names and counts by label."""
    path = place / IDENTITIES_NAME
    if not path.exists():
        return pa.nulls(manifest.num_classes, pa.string()), None
    table = read_identities(path, "name", manifest.num_classes)
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{path}: damaged: {first_line(error)}; write the set again") from error
    rows = np.full(manifest.num_classes, -1)
    rows[table["label"].to_numpy()] = np.arange(table.num_rows)
    names = table["name"].combine_chunks().take(pa.array(rows, mask=rows < 0))
    table = read_identities(path, "count", manifest.num_classes)
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    counts[table["label"].to_numpy()] = table["count"].to_numpy()
    return names, counts


def _refuse_unlike(sources: Sequence[MergeSource]) -> None:
    first = sources[0]
    for number, other in enumerate(sources):
        if other.manifest.image_size != first.manifest.image_size:
            sizes = [f"{each.path} has pictures of {each.manifest.image_size} px" for each in (first, other)]
            raise UserError(
                f"{sizes[0]}, {sizes[1]}; a set has one size: make one of them again with `headcount prep align "
                "--image-size`"
            )
        for before in sources[:number]:
            if before.key_prefix == other.key_prefix:
                raise UserError(f"{before.path} and {other.path} hold the same pictures; give each set once")
