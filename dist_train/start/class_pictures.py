"""The pictures of single classes, found by the index of each set by class."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.data.class_index import build_class_index, load_class_index
from dist_train.data.config import DataConfig
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.remote import cache_policy
from dist_train.data.shards import RawSample
from dist_train.data.sources import open_sources

Ints = NDArray[np.int64]

_MOST_OPEN = 400  # shards; a process may have 1,024 files open by default


class _Indexed(NamedTuple):
    """A set by class; its samples are numbered from `first_sample` on."""

    first_label: int
    first_sample: int
    members: Ints
    starts: Ints


class ClassPictures:
    """Reads the samples of any classes of a run's sets; close it.

    Args:
        config: the `data` section.

    Raises:
        UserError: a set is missing or damaged.
        WorkError: a shard cannot be read, or a server cannot be reached.
    """

    def __init__(self, config: DataConfig) -> None:
        sources = open_sources(config.model_copy(update={"check_at_start": False}))
        policy = cache_policy(config)
        shards = [shard.samples for each in sources.sets for shard in each.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(shards)])
        self._sets: list[_Indexed] = []
        first = 0
        for each in sources.sets:
            if not each.labelled:
                first += each.manifest.samples
                continue
            # The index is of the set alone, whatever its labels are in this mixture.
            alone = ImageSet(each.path, each.manifest)
            index = load_class_index(build_class_index(alone, config.label_key, policy))
            self._sets.append(_Indexed(each.first_label, first, *index))
            first += each.manifest.samples
        self._reader = SampleReader(sources.sets, config.label_key, _MOST_OPEN, policy)

    def count(self, classes: Ints) -> int:
        """Samples of `classes` [n] in all sets."""
        return sum(int(counts.sum()) for _, _, counts in self._found(classes))

    def of(self, classes: Ints) -> tuple[Ints, Ints]:
        """Places in `classes` [n], and the numbers of their samples, both [m]: in the order of the files."""
        places, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for each, (inside, begins, counts) in zip(self._sets, self._found(classes), strict=True):
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places.append(np.repeat(inside, counts))
            numbers.append(each.members[np.repeat(begins, counts) + within] + each.first_sample)
        found = np.concatenate(numbers)
        order = np.argsort(found)
        return np.concatenate(places)[order], found[order]

    def _found(self, classes: Ints) -> list[tuple[Ints, Ints, Ints]]:
        """For each set: which of `classes` [n] may be in it, where their samples begin in its index, how many."""
        found = []
        for each in self._sets:
            labels = classes - each.first_label
            inside = np.flatnonzero((labels >= 0) & (labels < len(each.starts) - 1))
            begins = each.starts[labels[inside]]
            found.append((inside, begins, each.starts[labels[inside] + 1] - begins))
        return found

    def read(self, number: int) -> RawSample:
        """The sample of that number.

        Raises:
            BadSampleError: it cannot be used.
            WorkError: a server cannot be reached.
        """
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._reader.read(shard, int(number - self._starts[shard]))

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()
