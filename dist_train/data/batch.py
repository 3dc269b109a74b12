"""What a loader gives to a training step, and the way from bytes to the device."""

import sys
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_UNUSED = 3  # references to a pooled array that nobody uses: the pool's, the loop's, and getrefcount's own


_IN_CACHE = 8  # pictures that are normalised at once: the floats of so many stay in a core's cache


class Batch(NamedTuple):
    """One rank's part of a global batch.

    Attributes:
        images: float32 [B, 3, S, S] in -1 .. 1, red first, on the device.
        labels: int64 [B], on the device.
        positions: int64 [B], their places in the sample order, on the CPU.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor


class Transfer:
    """Moves uint8 pictures to the device and normalises them there: a quarter of the bytes cross the border."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: list[NDArray[np.float32]] = []

    def __call__(
        self, images: NDArray[np.uint8] | Tensor, labels: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> Batch:
        """A batch that shares no memory with `images` [B, 3, S, S], `labels` [B] or `positions` [B]."""
        pixels = images if isinstance(images, Tensor) else torch.from_numpy(images)
        classes = torch.from_numpy(labels)
        if self._device.type == "cpu":
            out = torch.from_numpy(self._array(tuple(images.shape)))
            for part, part_out in zip(pixels.split(_IN_CACHE), out.split(_IN_CACHE), strict=True):
                normalise(part, part_out)
            return Batch(out, classes.clone(), torch.from_numpy(positions.copy()))
        if self._device.type == "cuda" and pixels.device.type == "cpu":
            # The pinned copy may be dropped at once: its allocator waits for the transfer before reusing it.
            pixels = pixels.pin_memory()
        # Blocking where memory is not pinned: the caller's arrays may change as soon as this returns.
        pixels = pixels.to(self._device, non_blocking=pixels.is_pinned())
        return Batch(normalise(pixels), classes.to(self._device), torch.from_numpy(positions.copy()))

    def _array(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        # The tensors over an array, saved for backward or not, keep a reference to it. One without is free. A fresh
        # array would cost ten times the normalisation, in page faults.
        for array in self._pool:
            if array.shape == shape and sys.getrefcount(array) == _UNUSED:
                return array
        array = np.empty(shape, dtype=np.float32)
        if len(self._pool) < 4:
            self._pool.append(array)
        return array


def normalise(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Grey levels 0 .. 255 to float32 -1 .. 1 (mean 0.5, standard deviation 0.5), where the tensor is."""
    floats = images.to(torch.float32) if out is None else out.copy_(images)
    return floats.mul_(1 / 127.5).sub_(1)
