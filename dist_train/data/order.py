"""The sample order: which sample stands at a position, as a pure function of the seed.

Positions count the samples of a whole run, over all epochs and ranks. Nothing here knows about ranks, workers or
backends, so none of them can change the order.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np

from dist_train.data.counters import Ints, permute, permute_each
from dist_train.errors import UserError

# Each use of the seed has a range of tweaks of its own, so that no two permutations are the same one.
_SHARDS, _WINDOW, _MIX, _CLASSES, _MEMBERS = (kind << 40 for kind in range(1, 6))
_STREAM = 1 << 36  # between the sources of a mixture
_MIX_BLOCK = 1000  # positions over which the shares of a mixture are exact


class SamplePlaces(NamedTuple):
    """Where the samples of some positions are: four arrays [n].

    Attributes:
        shard: number of the shard, counted through the sets.
        sample: number of the sample in the shard.
        epoch: pass over the data that the position belongs to.
        offset: offset of the position in that pass; (epoch, offset) keys the augmentation.
    """

    shard: Ints
    sample: Ints
    epoch: Ints
    offset: Ints


class Order(Protocol):
    """Positions to places, and the length of an epoch."""

    epoch_length: int  # positions; a multiple of the global batch

    def locate(self, positions: Ints) -> SamplePlaces:
        """Places of the samples at `positions` [n]."""

    def upcoming(self, position: int) -> Ints:
        """Shards that are read at `position` and soon after it, those that are needed first coming first."""


class _Layout(NamedTuple):
    shards: Ints  # the epoch's permutation of the shards
    starts: Ints  # [shards + 1], samples before each of them
    windows: Ints  # [windows + 1], bounds into `shards`


class WindowShuffle:
    """One set, shuffled anew in every epoch: shards permuted, then samples within windows of shards.

    A sample can come at any time of an epoch, because its shard can; samples of one shard come within one window of
    each other. Memory is a few integers per shard.
    """

    def __init__(self, shard_samples: Sequence[int] | Ints, window_shards: int, seed: int, stream: int = 0) -> None:
        self._samples = np.asarray(shard_samples, dtype=np.int64)
        self._window_shards = window_shards
        self._seed = seed
        self._stream = stream * _STREAM
        self.samples = int(self._samples.sum())
        self.shards = len(self._samples)
        self._layout = lru_cache(maxsize=2)(self._make_layout)

    def _make_layout(self, epoch: int) -> _Layout:
        count = len(self._samples)
        shards = permute(np.arange(count, dtype=np.int64), count, self._seed, _SHARDS + self._stream, epoch)
        starts = np.concatenate([[0], np.cumsum(self._samples[shards])])
        windows = -(-count // self._window_shards)
        # Bounds as even as they can be: a last window of one shard would be read almost in file order.
        return _Layout(shards, starts, np.arange(windows + 1, dtype=np.int64) * count // windows)

    def locate(self, epoch: int, indices: Ints) -> tuple[Ints, Ints]:
        """Shards and samples at the places `indices` [n] of an epoch, each below `samples`."""
        layout = self._layout(epoch)
        bounds = layout.starts[layout.windows]  # [windows + 1]
        window = np.searchsorted(bounds, indices, side="right") - 1
        if (window[0] == window).all():
            window = np.asarray(window[0])  # the usual case, and the faster one
        start, size = bounds[window], np.diff(bounds)[window]
        tweaks = _WINDOW + self._stream + window
        shuffled = start + permute_each(indices - start, np.asarray(size), self._seed, tweaks, np.asarray(epoch))
        place = np.searchsorted(layout.starts, shuffled, side="right") - 1
        return layout.shards[place], shuffled - layout.starts[place]

    def upcoming(self, epoch: int, index: int) -> Ints:
        """Shards of the window that holds place `index` of an epoch, and of the window after it."""
        layout = self._layout(epoch)
        window = int(np.searchsorted(layout.starts[layout.windows], index, side="right")) - 1
        if window + 2 < len(layout.windows):
            return layout.shards[layout.windows[window] : layout.windows[window + 2]]
        following = self._layout(epoch + 1)
        return np.concatenate([layout.shards[layout.windows[window] :], following.shards[: following.windows[1]]])


class SingleOrder:
    """Epochs of one set; the last, partial batch is dropped or padded with the epoch's first samples."""

    def __init__(self, shuffle: WindowShuffle, global_batch: int, last_batch: Literal["drop", "pad"]) -> None:
        if last_batch == "drop" and shuffle.samples < global_batch:
            raise UserError(
                f"the set has {shuffle.samples} samples, fewer than one global batch of {global_batch}; "
                "use a smaller batch, or data.last_batch=pad"
            )
        steps = shuffle.samples // global_batch if last_batch == "drop" else -(-shuffle.samples // global_batch)
        self._shuffle = shuffle
        self.epoch_length = steps * global_batch

    def locate(self, positions: Ints) -> SamplePlaces:
        """Places of the samples at `positions` [n]."""
        epochs, places = np.divmod(positions, self.epoch_length)
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shard[chosen], sample[chosen] = self._shuffle.locate(int(epoch), places[chosen] % self._shuffle.samples)
        return SamplePlaces(shard, sample, epochs, places)

    def upcoming(self, position: int) -> Ints:
        """Shards of the window at `position` and of the next."""
        epoch, place = divmod(position, self.epoch_length)
        return self._shuffle.upcoming(epoch, place % self._shuffle.samples)


class MixedOrder:
    """Several sets drawn from by weight, exact to a thousandth over every thousand positions.

    Each set goes through epochs of its own, without a gap between them. An epoch of the mixture is as long as the
    first set takes.
    """

    def __init__(
        self, shuffles: Sequence[WindowShuffle], weights: Sequence[float], seed: int, global_batch: int
    ) -> None:
        self._shuffles = shuffles
        self._seed = seed
        self._bounds = _shares(weights)  # [sets + 1], of the block's slots
        self.epoch_length = global_batch * max(
            1, shuffles[0].samples * _MIX_BLOCK // int(self._bounds[1]) // global_batch
        )

    def locate(self, positions: Ints) -> SamplePlaces:
        """Places of the samples at `positions` [n]."""
        blocks, offsets = np.divmod(positions, _MIX_BLOCK)
        slots = permute_each(offsets, np.asarray(_MIX_BLOCK), self._seed, blocks + _MIX, np.asarray(0))
        source = np.searchsorted(self._bounds, slots, side="right") - 1
        # Every slot of a block belongs to one set, so its number within the set's slots numbers the set's samples.
        index = blocks * np.diff(self._bounds)[source] + slots - self._bounds[source]
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        first_shard = 0
        for number, shuffle in enumerate(self._shuffles):
            epochs, places = np.divmod(index, shuffle.samples)
            for epoch in np.unique(epochs[source == number]):
                chosen = (source == number) & (epochs == epoch)
                shard[chosen], sample[chosen] = shuffle.locate(int(epoch), places[chosen])
            shard[source == number] += first_shard
            first_shard += shuffle.shards
        return SamplePlaces(shard, sample, *np.divmod(positions, self.epoch_length))

    def upcoming(self, position: int) -> Ints:
        """Shards of each set's window at `position` and of its next."""
        found, first_shard = [], 0
        for shuffle, share in zip(self._shuffles, np.diff(self._bounds).tolist(), strict=True):
            found.append(shuffle.upcoming(*divmod(position * share // _MIX_BLOCK, shuffle.samples)) + first_shard)
            first_shard += shuffle.shards
        return np.concatenate(found)


class ClassOrder:
    """P x K batches: `per_class` positions in a row show one identity.

    All identities come once, in random order, before any comes again; each goes through all its pictures before it
    repeats one, or repeats them at once where it has fewer than K.
    """

    def __init__(
        self, members: Ints, starts: Ints, shard_samples: Sequence[int], per_class: int, seed: int, global_batch: int
    ) -> None:
        """Order the samples `members` [N], sorted by class, of which class c has starts[c] .. starts[c + 1]."""
        self._members, self._starts = members, starts
        self._classes = np.flatnonzero(np.diff(starts))
        self._shards = np.concatenate([[0], np.cumsum(np.asarray(shard_samples, dtype=np.int64))])
        self._per_class = per_class
        self._seed = seed
        self.epoch_length = max(1, len(members) // global_batch) * global_batch
        if global_batch > per_class * len(self._classes):
            raise UserError(
                f"a global batch of {global_batch} with data.images_per_class={per_class} needs "
                f"{-(-global_batch // per_class)} identities, the set has {len(self._classes)}; use a smaller batch"
            )

    def locate(self, positions: Ints) -> SamplePlaces:
        """Places of the samples at `positions` [n]."""
        groups, number = np.divmod(positions, self._per_class)
        rounds, turn = np.divmod(groups, len(self._classes))
        size = np.asarray(len(self._classes))
        chosen = self._classes[permute_each(turn, size, self._seed, np.asarray(_CLASSES), rounds)]
        sizes = self._starts[chosen + 1] - self._starts[chosen]
        passes, index = np.divmod(rounds * self._per_class + number, sizes)
        index = permute_each(index, sizes, self._seed, chosen + _MEMBERS, passes)
        sample = np.asarray(self._members[self._starts[chosen] + index])
        shard = np.searchsorted(self._shards, sample, side="right") - 1
        return SamplePlaces(shard, sample - self._shards[shard], *np.divmod(positions, self.epoch_length))

    def upcoming(self, position: int) -> Ints:
        """All shards: any identity's pictures may be in any of them."""
        return np.arange(len(self._shards) - 1, dtype=np.int64)


def _shares(weights: Sequence[float]) -> Ints:
    """Bounds that cut a block into one part per weight, each with at least one slot."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * _MIX_BLOCK
    counts = np.maximum(np.floor(shares).astype(np.int64), 1)
    # The largest remainders take what rounding left; ties go to the first.
    for number in np.argsort(counts - shares, kind="stable")[: max(0, _MIX_BLOCK - int(counts.sum()))]:
        counts[number] += 1
    counts[np.argmax(counts)] -= counts.sum() - _MIX_BLOCK
    return np.concatenate([[0], np.cumsum(counts)])
