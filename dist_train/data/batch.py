"""What a loader gives to a training step, and the way from bytes to the device."""

import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.levels import normalise
from dist_train.data.uplink import Uplink
from dist_train.runtime.to_device import to_device

_POOLED = 4  # arrays that are kept for further batches
_IN_CACHE = 8  # pictures that are normalised at once: the floats of so many stay in a core's cache


class Batch(NamedTuple):
    """One rank's part of a global batch.

    Attributes:
        images: float32 [B, 3, S, S] in -1 .. 1, red first, on the device.
        labels: int64 [B], on the device.
        positions: int64 [B], their places in the sample order, on the CPU.
        host_labels: the labels on the CPU, for whoever must know them before the device has worked off its queue.
        source: int64 [B], the set that each sample was read from, on the CPU: 0 for `data.path`, n for the n-th set of
            `data.mix`. A bad sample's replacement may come from another set than the order had there.
        other: like `images`, the second view of the same samples under augmentation draws of its own; None where the
            loader makes one view.
        several: int64 [B, L], all labels of the samples on the CPU, that of `labels` first, with -1 behind them where
            there are fewer than L; None where samples have one.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    host_labels: Tensor
    source: Tensor
    other: Tensor | None = None
    several: Tensor | None = None

    def both(self) -> "Batch":
        """A batch of 2·B samples, the second views behind the first ones.

        Raises:
            ValueError: the loader made one view.
        """
        if self.other is None:
            raise ValueError("the batch has one view of each sample; open its loader with views=2")
        twice = [torch.cat([field, field]) for field in self[1:5]]
        several = None if self.several is None else torch.cat([self.several, self.several])
        return Batch(torch.cat([self.images, self.other]), *twice)._replace(several=several)

    def chunk(self, count: int) -> "list[Batch]":
        """The batch cut into `count` micro-batches, in order."""
        fields = [[None] * count if field is None else field.chunk(count) for field in self]
        return [Batch(*parts) for parts in zip(*fields, strict=False)]


class _Pooled:
    """An array that is used again once nobody looks at it.

    What is lent is a view. The tensors over it, saved for backward or not, keep the view alive, so that its end is
    the end of all of them.

    Attributes:
        array: the memory.
        lent: the last view of it; gives None once that is gone.
    """

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array = array
        self.lent: Callable[[], NDArray[np.float32] | None] = lambda: None

    def lend(self) -> NDArray[np.float32]:
        view = self.array.view()
        self.lent = weakref.ref(view)
        return view


class Transfer:
    """Moves uint8 pictures to the device and normalises them there: a quarter of the bytes cross the border.

    To a GPU they go with the labels on a stream of their own, while it works on the step before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: list[_Pooled] = []
        self._uplink = Uplink(device) if device.type == "cuda" else None

    def __call__(
        self,
        images: NDArray[np.uint8] | Tensor,
        labels: NDArray[np.int64],
        positions: NDArray[np.int64],
        sources: NDArray[np.int64],
        other: NDArray[np.uint8] | Tensor | None = None,
    ) -> Batch:
        """A batch that shares no memory with `images`, `other` [B, 3, S, S], `labels`, `positions` or `sources` [B].

        Labels are [B, L] where samples have several.
        """
        several = torch.from_numpy(labels.copy()) if labels.ndim == 2 else None
        on_host = (labels if several is None else labels[:, 0], positions, sources)
        host_labels, host_positions, host_sources = (torch.from_numpy(values.copy()) for values in on_host)
        views = [images] if other is None else [images, other]
        pixels = [view if isinstance(view, Tensor) else torch.from_numpy(view) for view in views]
        near_labels, first, *second = self._near(host_labels, pixels)
        near_second = second[0] if second else None
        return Batch(first, near_labels, host_positions, host_labels, host_sources, near_second, several)

    def _near(self, labels: Tensor, pixels: list[Tensor]) -> list[Tensor]:
        """Labels [B], and pictures [B, 3, S, S] of each view, normalised, on the device."""
        if self._uplink is not None and all(view.device.type == "cpu" for view in pixels):
            sent = self._uplink.send([labels, *pixels], lambda near: [near[0], *map(normalise, near[1:])])
            return sent.take()
        if self._device.type != "cpu":  # a decoder has left the pictures there
            return [to_device(labels, self._device), *(normalise(view.to(self._device)) for view in pixels)]
        return [labels, *map(self._floats, pixels)]

    def _floats(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] on the CPU, normalised."""
        out = torch.from_numpy(self._array(tuple(pixels.shape)))
        for part, part_out in zip(pixels.split(_IN_CACHE), out.split(_IN_CACHE), strict=True):
            normalise(part, part_out)
        return out

    def _array(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        # A fresh array would cost ten times the normalisation, in page faults.
        free = (each for each in self._pool if each.array.shape == shape and each.lent() is None)
        pooled = next(free, None) or _Pooled(np.empty(shape, dtype=np.float32))
        if pooled not in self._pool and len(self._pool) < _POOLED:
            self._pool.append(pooled)
        return pooled.lend()
