"""From positions to pixels: order, reading, decoding, augmentation, and the replacement of bad samples."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dist_train.data.augment import Augmentation, draw
from dist_train.data.bad_samples import BadSample
from dist_train.data.class_index import load_class_index
from dist_train.data.config import DataConfig
from dist_train.data.counters import Ints
from dist_train.data.opencv import Augmenter, decode
from dist_train.data.order import ClassOrder, MixedOrder, Order, SamplePlaces, SingleOrder, WindowShuffle
from dist_train.data.pictures import Pixels
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.remote import cache_policy
from dist_train.data.several_labels import put_labels
from dist_train.data.shards import BadSampleError
from dist_train.errors import WorkError

_MOST_REPLACEMENTS = 1000  # bad samples in a row, after which something else is wrong
_LOOKED_UP_AT_ONCE = 20  # of them: a good one is near, and in a small set a thousand are many epochs

_MOST_OPEN = 400  # shards; a process may have 1,024 files open by default


class BatchPlan(NamedTuple):
    """All that decides the batches of a run; equal plans give equal batches, in whatever process.

    Attributes:
        sets: the sets that are read.
        config: the `data` section.
        seed: of order and augmentation.
        global_batch: samples per step over all ranks.
        image_size: side of the pictures in pixels.
        class_index: directory of the samples sorted by class, where the order needs that.
        views: pictures made of each sample, each by augmentation draws of its own.
    """

    sets: tuple[ImageSet, ...]
    config: DataConfig
    seed: int
    global_batch: int
    image_size: int
    class_index: str = ""
    views: int = 1


def build_order(plan: BatchPlan) -> Order:
    """The sample order of a plan.

    Raises:
        UserError: a batch that the data cannot fill.
    """
    config = plan.config
    counts = [[shard.samples for shard in each.manifest.shards] for each in plan.sets]
    if config.images_per_class:
        members, starts = load_class_index(Path(plan.class_index))
        return ClassOrder(members, starts, counts[0], config.images_per_class, plan.seed, plan.global_batch)
    shuffles = [
        WindowShuffle(samples, config.window_shards, plan.seed, stream) for stream, samples in enumerate(counts)
    ]
    if config.mix:
        weights = [config.weight, *(source.weight for source in config.mix)]
        return MixedOrder(shuffles, weights, plan.seed, plan.global_batch)
    return SingleOrder(shuffles[0], plan.global_batch, config.last_batch)


def open_reader(plan: BatchPlan) -> SampleReader:
    """A reader for the shards of a plan."""
    # Two windows of each set are in use while one passes into the next.
    limit = min((2 * plan.config.window_shards + 2) * len(plan.sets), _MOST_OPEN)
    policy, most = cache_policy(plan.config), plan.config.labels_per_sample
    return SampleReader(plan.sets, plan.config.label_key, limit, policy, most)


class Assembler:
    """Makes the pictures and labels of any positions of a plan.

    Attributes:
        order: which sample stands where.
        reader: of the samples.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self.order = build_order(plan)
        self.reader = open_reader(plan)
        self._augmenters = [Augmenter(plan.image_size) for _ in range(plan.views)]

    def draw(self, places: SamplePlaces, view: int) -> Augmentation:
        """Augmentation parameters of some places in a view."""
        config = self._plan.config.augment
        return draw(config, self._plan.seed, places.epoch, places.offset, self._plan.image_size, view)

    def fill(self, positions: Ints, images: Pixels, labels: Ints, sources: Ints) -> list[BadSample]:
        """Write the samples at `positions` [n], and where they come from.

        Args:
            positions: in the sample order, [n].
            images: takes the pictures of each view, [views, n, 3, size, size], red first.
            labels: takes their classes, [n], or [n, L] where samples have several.
            sources: takes the numbers of the sets that they were read from, [n].

        Returns:
            The bad samples among them, which have been replaced; see `walk`.

        Raises:
            WorkError: nothing but bad samples follow a position.
        """
        places = self.order.locate(positions)
        for view, augmenter in enumerate(self._augmenters):
            augmenter.load(self.draw(places, view))

        def put(row: int, shard: int, sample: int) -> None:
            raw = self.reader.read(shard, sample)
            picture = decode(raw.image, raw.set_px)
            for view, augmenter in enumerate(self._augmenters):
                augmenter.apply(picture, row, images[view, row])
            put_labels(labels, row, raw)
            sources[row] = raw.source

        return self.walk(positions, places, put)

    def walk(self, positions: Ints, places: SamplePlaces, put: Callable[[int, int, int], None]) -> list[BadSample]:
        """Call `put(row, shard, sample)` for the samples at `positions` [n], whose `places` these are.

        Where `put` raises `BadSampleError`, the next good sample in the order takes the bad one's place, whatever rank
        or worker that one belongs to, and keeps the augmentation of the position.

        Returns:
            The bad samples.

        Raises:
            WorkError: nothing but bad samples follow a position.
        """
        bad: list[BadSample] = []
        rows = zip(positions.tolist(), places.shard.tolist(), places.sample.tolist(), strict=True)
        for row, (position, shard, sample) in enumerate(rows):
            try:
                put(row, shard, sample)
            except BadSampleError as error:
                found = BadSample(position, self.reader.name(shard), self.reader.key(shard, sample), str(error))
                bad.append(found)
                self._replace(found, row, put)
        return bad

    def _replace(self, bad: BadSample, row: int, put: Callable[[int, int, int], None]) -> None:
        first = bad.position + 1
        for start in range(first, first + _MOST_REPLACEMENTS, _LOOKED_UP_AT_ONCE):
            places = self.order.locate(np.arange(start, start + _LOOKED_UP_AT_ONCE, dtype=np.int64))
            for shard, sample in zip(places.shard.tolist(), places.sample.tolist(), strict=True):
                try:
                    put(row, shard, sample)
                except BadSampleError:
                    continue
                return
        raise WorkError(
            f"{_MOST_REPLACEMENTS} bad samples in a row from position {bad.position} on; the first is {bad.key} in "
            f"{bad.shard}: {bad.reason}; run `headcount data verify`"
        )

    def close(self) -> None:
        """Close the shards."""
        self.reader.close()
