"""Embeddings of a file in the order of the set that they were made of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dist_train.data.index import read_index
from dist_train.data.tar_samples import parts_of
from dist_train.embed.tar_keys import tars_of
from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.text import shown_name


def placed(embedded: EmbeddedSet, samples: StoredSet) -> EmbeddedSet:
    """Rows of `embedded` in the order of a set; a sample without one has a zero row, the label -1 and no cosine.

    Raises:
        UserError: a row of a picture that the set does not have, or with a label that it does not have.
    """
    place = _places(embedded.keys, samples)
    if (embedded.labels < 0).any():
        row = int((embedded.labels < 0).nonzero()[0])
        raise UserError(f"embeddings {embedded.path}: row {row}, {shown_name(embedded.keys[row])}, has no label")
    if embedded.labels.max() >= samples.manifest.num_classes:
        raise UserError(
            f"embeddings {embedded.path}: label {int(embedded.labels.max())}, but {samples.directory} has "
            f"{samples.manifest.num_classes} identities; embed that set again"
        )
    if len(place) == len(samples) and bool((place == np.arange(len(place))).all()):
        return embedded
    at = torch.from_numpy(place)
    features = torch.zeros(len(samples), embedded.features.shape[1]).index_copy_(0, at, embedded.features)
    norms = torch.zeros(len(samples)).index_copy_(0, at, embedded.norms)
    labels = torch.full((len(samples),), -1).index_copy_(0, at, embedded.labels)
    keys = [""] * len(samples)
    for row, number in enumerate(place.tolist()):
        keys[number] = embedded.keys[row]
    return replace(
        embedded, features=features, norms=norms, labels=labels, keys=keys, roles=[None] * len(keys), columns={}
    )


def _pictures(tar: Path) -> Iterator[str]:
    """Names of the pictures of a shard's samples, as `headcount embed` writes them."""
    for members in read_index(tar.with_suffix(".idx"), tar.stat().st_size):
        pictures = parts_of(members).pictures
        yield shown_name(pictures[0].name) if pictures else ""


def _places(keys: list[str], samples: StoredSet) -> np.ndarray:
    """The number in the set of each row of a file, whose keys are `TAR:MEMBER`."""
    by_tar: dict[str | None, list[int]] = {}
    for row, tar in enumerate(tars_of(pa.array(keys, pa.string())).to_pylist()):
        by_tar.setdefault(tar, []).append(row)
    place = np.full(len(keys), -1)
    start = 0
    for shard in samples.manifest.shards:
        if rows := by_tar.get(shard.name):
            numbers = {name: start + at for at, name in enumerate(_pictures(samples.directory / shard.name))}
            for row in rows:
                place[row] = numbers.get(keys[row][len(shard.name) + 1 :], -1)
        start += shard.samples
    if (place < 0).any():
        row = int(np.flatnonzero(place < 0)[0])
        raise UserError(
            f"embeddings of another set: row {row}, {shown_name(keys[row])}, is not in {samples.directory}; give the "
            "embeddings of this set: headcount embed MODEL SET FILE"
        )
    if len(np.unique(place)) < len(place):
        raise UserError(f"embeddings of {samples.directory}: a picture has two rows; embed the set again")
    return place
