"""A teacher that has spoken before: embeddings that `headcount embed` wrote, found by the sample's place in its tar."""

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.data.index import Member, read_index
from dist_train.data.loader import Loader
from dist_train.data.remote import cache_policy, is_remote
from dist_train.data.tar_samples import key_of, parts_of
from dist_train.errors import UserError
from dist_train.objectives.stored_rows import StoredRows, open_stored_rows, shown_tars
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.to_device import to_device

logger = logging.getLogger(__name__)

_MOST_SHARDS = 400  # whose samples' rows are held
_SAID = 3  # samples without an embedding in the log


class StoredTeacher:
    """Stored embeddings; augmentation does not reach them.

    A sample without an embedding has zeros: it teaches nothing, is counted, and the first are named. A sample that
    took a bad one's place is told by its label.

    Args:
        key: of the recipe, for messages.
        stored: the embeddings.
        loader: of the batches.
        device: of the batches.

    Attributes:
        embedding_dim: Dt.
        digest: of how they were made.
        missing: samples of this rank so far that have none.
    """

    def __init__(self, key: str, stored: StoredRows, loader: Loader, device: torch.device) -> None:
        self.embedding_dim, self.digest = stored.embeddings.shape[1], stored.digest
        self.missing = 0
        self._key, self._stored, self._loader, self._device = key, stored, loader, device
        self._shards = [(each, shard) for each in loader.sources.sets for shard in each.manifest.shards]
        self._found: OrderedDict[int, NDArray[np.int64]] = OrderedDict()  # by shard, the row of each sample
        self._seen = 0

    def __call__(self, batch: Batch) -> Tensor:
        """See `Teacher`."""
        places = self._loader.locate(batch.positions.numpy())
        rows = np.full(len(places.shard), -1, dtype=np.int64)
        for shard in np.unique(places.shard).tolist():
            here = places.shard == shard
            rows[here] = self._rows_of(shard)[places.sample[here]]
            first = self._shards[shard][0].first_label
            known = self._stored.places[np.maximum(rows[here], 0), 1]
            other = (known >= 0) & (known + first != batch.host_labels.numpy()[here])
            rows[here] = np.where(other, -1, rows[here])
        self._seen = len(rows)
        self._count(rows, places.shard, places.sample)
        found = np.zeros((len(rows), self.embedding_dim), dtype=np.float32)
        found[rows >= 0] = self._stored.embeddings[rows[rows >= 0]]
        return to_device(torch.from_numpy(found), self._device)

    def figures(self) -> dict[str, float]:
        """See `Teacher`: `missing`, samples of this rank so far without an embedding."""
        return {"missing": float(self.missing)}

    def close(self) -> None:
        """See `Teacher`."""
        self._found.clear()

    def _rows_of(self, shard: int) -> NDArray[np.int64]:
        """For each sample of a shard its row, -1 for none."""
        found = self._found.get(shard)
        if found is None:
            found = self._found[shard] = self._read_rows(shard)
            if len(self._found) > _MOST_SHARDS:
                self._found.popitem(last=False)
        else:
            self._found.move_to_end(shard)
        return found

    def _read_rows(self, number: int) -> NDArray[np.int64]:
        shard = self._shards[number][1]
        low, high = self._stored.tars.get(shard.name, (0, 0))
        rows = np.full(shard.samples, -1, dtype=np.int64)
        if low == high:
            return rows
        pictures = [parts_of(members).pictures for members in self._index(number)]
        wanted = np.array([each[0].offset if each else -1 for each in pictures], dtype=np.int64)
        offsets = np.asarray(self._stored.places[low:high, 0])
        place = np.minimum(np.searchsorted(offsets, wanted), len(offsets) - 1)
        met = offsets[place] == wanted
        rows[: len(met)][met] = low + place[met]
        return rows

    def _index(self, number: int) -> list[list[Member]]:
        source, shard = self._shards[number]
        return read_index((Path(source.path) / shard.name).with_suffix(".idx"), shard.bytes)[: shard.samples]

    def _count(self, rows: NDArray[np.int64], shards: NDArray[np.int64], samples: NDArray[np.int64]) -> None:
        for place in np.flatnonzero(rows < 0).tolist():
            if self.missing < _SAID:
                shard, sample = int(shards[place]), int(samples[place])
                members = self._index(shard)[sample]
                name = f"{key_of(members[0].name)} in {self._shards[shard][1].name}" if members else f"#{sample}"
                logger.warning("%s has no embedding of sample %s, which teaches nothing", self._key, name)
            self.missing += 1


def open_stored_teacher(key: str, path: Path, config: RunConfig, loader: Loader, ranks: Ranks) -> StoredTeacher:
    """The embeddings in a file, on every rank the same. A collective.

    Raises:
        UserError: another file, or one of other pictures than the training set's.
        WorkError: it is damaged.
    """
    if any(is_remote(each.path) for each in loader.sources.sets):
        raise UserError(
            f"{key} {path}: stored embeddings are found by the indexes of shards on disk, and a set is behind an "
            "address; give the network itself as teacher"
        )
    directory = cache_policy(config.data).directory

    def opened() -> StoredTeacher:
        stored = open_stored_rows(key, path, directory)
        _check(key, path, stored, loader, ranks.rank == 0)
        return StoredTeacher(key, stored, loader, ranks.device)

    return ranks.agree(opened)


def _check(key: str, path: Path, stored: StoredRows, loader: Loader, speaks: bool) -> None:
    """See that the file is of the training set, or of one set of a mixture, and say how much of it."""
    sets = [each for each in loader.sources.sets if any(shard.name in stored.tars for shard in each.manifest.shards)]
    here = [shard.name for each in loader.sources.sets for shard in each.manifest.shards]
    if not sets:
        raise UserError(
            f"{key} {path}: is of {stored.source} with {shown_tars(list(stored.tars))}, and the training set has "
            f"{shown_tars(here)}; embed the training set: headcount embed MODEL {loader.sources.sets[0].path} FILE"
        )
    if len(sets) > 1:
        raise UserError(
            f"{key} {path}: {sets[0].path} and {sets[1].path} have shards of the same name, so that nobody knows whose "
            "embeddings these are; rename the shards of one, or give the network itself as teacher"
        )
    samples = sum(shard.samples for shard in sets[0].manifest.shards)
    ranges = (stored.tars.get(shard.name, (0, 0)) for shard in sets[0].manifest.shards)
    known = sum(last - first for first, last in ranges)
    if speaks:
        logger.info("%s %s: %d embeddings for %d samples of %s", key, path, known, samples, sets[0].path)
