"""The sample order: which sample stands at a position, as a pure function of the seed.

Positions count the samples of a whole run, over all epochs and ranks. Nothing here knows about ranks, workers or
backends, so none of them can change the order.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np

from dist_train.data.counters import Ints, permute
from dist_train.errors import UserError

_SHARDS, _WINDOW, _MIX, _CLASSES, _MEMBERS = range(1, 6)  # tweaks that keep the permutations apart
_MIX_BLOCK = 1000  # positions over which the shares of a mixture are exact


class Places(NamedTuple):
    """Where the samples of some positions are: four arrays [n].

    Attributes:
        shard: number of the shard in the manifest.
        sample: number of the sample in the shard.
        epoch: pass over the set that the position belongs to.
        place: of the position within that pass; (epoch, place) keys the augmentation.
    """

    shard: Ints
    sample: Ints
    epoch: Ints
    place: Ints


class Order(Protocol):
    """Positions to places, and the length of an epoch."""

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch: a multiple of the global batch size."""

    def locate(self, positions: Ints) -> Places:
        """Places of the samples at `positions` [n]."""


class _Layout(NamedTuple):
    shards: Ints  # the epoch's permutation of the shards
    starts: Ints  # [shards + 1], samples before each of them
    windows: Ints  # [windows + 1], bounds into `shards`


class WindowShuffle:
    """One set, shuffled anew in every epoch: shards permuted, then samples within windows of shards.

    A sample can come at any time of an epoch, because its shard can; samples that share a shard come within one window
    of each other. Memory is one integer per shard.
    """

    def __init__(self, shard_samples: Sequence[int] | Ints, window_shards: int, seed: int) -> None:
        self._samples = np.asarray(shard_samples, dtype=np.int64)
        self._window_shards = window_shards
        self._seed = seed
        self.samples = int(self._samples.sum())
        self._layout = lru_cache(maxsize=2)(self._make_layout)

    def _make_layout(self, epoch: int) -> _Layout:
        count = len(self._samples)
        shards = permute(np.arange(count, dtype=np.int64), count, self._seed, _SHARDS, epoch)
        starts = np.concatenate([[0], np.cumsum(self._samples[shards])])
        windows = -(-count // self._window_shards)
        # Bounds as even as they can be: a last window of one shard would be read almost in file order.
        return _Layout(shards, starts, np.arange(windows + 1, dtype=np.int64) * count // windows)

    def locate(self, epoch: int, indices: Ints) -> tuple[Ints, Ints]:
        """Shards and samples at the places `indices` [n] of an epoch, each below `samples`."""
        layout = self._layout(epoch)
        bounds = layout.starts[layout.windows]  # [windows + 1]
        window = np.searchsorted(bounds, indices, side="right") - 1
        shuffled = np.empty_like(indices)
        for number in np.unique(window):
            chosen = window == number
            start, stop = int(bounds[number]), int(bounds[number + 1])
            shuffled[chosen] = start + permute(
                indices[chosen] - start, stop - start, self._seed, _WINDOW, epoch, int(number)
            )
        place = np.searchsorted(layout.starts, shuffled, side="right") - 1
        return layout.shards[place], shuffled - layout.starts[place]

    def upcoming(self, epoch: int, index: int) -> Ints:
        """Shards in the order of first need, from the window that holds place `index` to the end of the epoch."""
        layout = self._layout(epoch)
        bounds = layout.starts[layout.windows]
        window = int(np.searchsorted(bounds, min(index, self.samples - 1), side="right")) - 1
        return layout.shards[layout.windows[window] :]


class SingleOrder:
    """Epochs of one set; the last, partial batch is dropped or padded."""

    def __init__(self, shuffle: WindowShuffle, global_batch: int, last_batch: Literal["drop", "pad"]) -> None:
        if last_batch == "drop" and shuffle.samples < global_batch:
            raise UserError(
                f"the set has {shuffle.samples} samples, fewer than one global batch of {global_batch}; "
                "use a smaller batch, or data.last_batch=pad"
            )
        steps = shuffle.samples // global_batch if last_batch == "drop" else -(-shuffle.samples // global_batch)
        self._shuffle = shuffle
        self.epoch_length = steps * global_batch

    def locate(self, positions: Ints) -> Places:
        """Places of the samples at `positions` [n]."""
        epochs, indices = np.divmod(positions, self.epoch_length)
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            # Padding starts the epoch's order again.
            shard[chosen], sample[chosen] = self._shuffle.locate(int(epoch), indices[chosen] % self._shuffle.samples)
        return Places(shard, sample, epochs, indices)
