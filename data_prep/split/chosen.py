"""The choice for a set whose shards were looked through: who is held out, and which of their pictures are known.

Memory holds a few numbers for every identity, and for every picture that is held out.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.merge.sources import MergeSource
from data_prep.split.choice import HeldOut, choose_heldout, new_labels, place
from data_prep.split.files import SplitFiles
from data_prep.split.options import SplitOptions
from data_prep.split.survey import hash_of, read_rows
from dist_train.data.counters import Ints, UInts
from dist_train.errors import WorkError
from dist_train.runtime.written import written

_AT_ONCE = 10_000  # names


class Chosen(NamedTuple):
    """Who is held out.

    Attributes:
        counts: usable pictures of each identity, int64 [classes].
        heldout: labels of those who are held out, ascending, int64 [H].
        hashes: of those, by which they are brought into an order [H].
        is_held: whether an identity is held out, bool [classes].
        is_train: whether it is trained on, bool [classes]; one without pictures is neither.
        samples: of those who are held out.
    """

    counts: Ints
    heldout: Ints
    hashes: UInts
    is_held: NDArray[np.bool_]
    is_train: NDArray[np.bool_]
    samples: HeldOut


def choose(files: SplitFiles, source: MergeSource, options: SplitOptions) -> Chosen:
    """Choose, and write down what parting the shards needs.

    Raises:
        UserError: there are not so many identities that can be held out.
        WorkError: what was found in a shard cannot be read any more.
    """
    counts = _counts(files, source)
    hashes = _hashes(source.names, options.seed)
    heldout = choose_heldout(counts, hashes, options.wanted, options.gallery)
    labels, is_held = new_labels(counts, heldout)
    samples = _samples(files, source, labels, is_held, options.gallery)
    known = np.sort(samples.places[samples.in_gallery])
    for path, array in ((files.labels, labels), (files.heldout, is_held), (files.gallery, known)):
        with written(path) as file:
            np.save(file, array)
    return Chosen(counts, heldout, hashes[heldout], is_held, (labels >= 0) & ~is_held, samples)


def names_of(source: MergeSource, own: NDArray[np.bool_]) -> pa.Array:
    """Names of some identities; one without a name is named by its label in the set."""
    labels = pa.array(np.flatnonzero(own))
    return pc.coalesce(source.names.take(labels), pc.cast(labels, pa.string()))


def _rows(files: SplitFiles, source: MergeSource) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each shard's number and its rows."""
    for unit, shard in enumerate(source.manifest.shards):
        try:
            rows = read_rows(files, unit, shard)
            if len(rows) and rows["label"].max() >= source.manifest.num_classes:
                raise ValueError(f"{files.rows(unit)}: label {rows['label'].max()}")
            yield unit, rows
        except (OSError, ValueError) as error:
            raise WorkError(f"{error}; remove {files.out} and run the same command again") from error


def _counts(files: SplitFiles, source: MergeSource) -> Ints:
    counts = np.zeros(source.manifest.num_classes, dtype=np.int64)
    for _, rows in _rows(files, source):
        labels, found = np.unique(rows["label"][rows["label"] >= 0], return_counts=True)
        counts[labels] += found
    return counts


def _hashes(names: pa.Array, seed: int) -> UInts:
    """A hash of each identity: of its name, or of its label where it has none."""
    hashes = np.empty(len(names), dtype=np.uint64)
    for start in range(0, len(names), _AT_ONCE):
        for label, name in enumerate(names.slice(start, _AT_ONCE).to_pylist(), start):
            hashes[label] = hash_of(f"label {label}" if name is None else f"name {name}", seed)
    return hashes


def _samples(files: SplitFiles, source: MergeSource, labels: Ints, is_held: NDArray[np.bool_], gallery: int) -> HeldOut:
    parts = []
    for unit, rows in _rows(files, source):
        numbers = np.flatnonzero(rows["label"] >= 0)
        numbers = numbers[is_held[rows["label"][numbers]]]
        own = rows[numbers]
        parts.append((labels[own["label"]], own["time"], own["hash"], place(unit, numbers)))
    own_labels, times, hashes, places = (np.concatenate(each) for each in zip(*parts, strict=True))
    return HeldOut.ordered(own_labels, times, hashes, places, gallery)
