"""What the trainer and its decoding processes share: the form of a task, and a board in shared memory."""

import mmap
import os
import struct
import tempfile
from typing import Any

import numpy as np

from dist_train.data.counters import Ints

TASK = struct.Struct("<qiii")  # first position of the batch, slot, first row, rows


def positions_of(first: int, start: int, count: int) -> Ints:
    """Positions of rows start .. start + count - 1 of the batch whose first position is `first`."""
    return np.arange(first + start, first + start + count, dtype=np.int64)


class Board:
    """Arrays over one piece of shared memory.

    Attributes:
        images: uint8 [slots, views, B, 3, S, S], the pictures of the batches under way.
        labels: int64 [slots, B], or [slots, B, L] where samples have up to L > 1.
        sources: int64 [slots, B], the set that each picture is from.
        working: int64 [workers, 2], the position each worker is at (-1: none) and since when, in nanoseconds.
    """

    def __init__(
        self, memory: int, slots: int, views: int, batch_size: int, size_px: int, workers: int, most_labels: int = 1
    ) -> None:
        shapes = _shapes(slots, views, batch_size, size_px, workers, most_labels)
        self._map = mmap.mmap(memory, _bytes(shapes))
        arrays: list[Any] = []
        offset = 0
        for shape, kind in shapes:
            arrays.append(np.frombuffer(self._map, kind, int(np.prod(shape)), offset).reshape(shape))
            offset += arrays[-1].nbytes
        self.labels, self.sources, self.working, self.images = arrays


def make_memory(slots: int, views: int, batch_size: int, size_px: int, workers: int, most_labels: int = 1) -> int:
    """A new piece of memory for a `Board`, as a file descriptor; it goes when the last process closes it."""
    size = _bytes(_shapes(slots, views, batch_size, size_px, workers, most_labels))
    memory = anonymous_file("headcount-batches")
    os.ftruncate(memory, size)
    return memory


def anonymous_file(name: str) -> int:
    """Descriptor of a new file without a path, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _shapes(
    slots: int, views: int, batch_size: int, size_px: int, workers: int, most_labels: int
) -> list[tuple[tuple[int, ...], type]]:
    pictures = (slots, views, batch_size, 3, size_px, size_px)
    numbers = (slots, batch_size)
    labels = numbers if most_labels == 1 else (*numbers, most_labels)
    return [(labels, np.int64), (numbers, np.int64), ((workers, 2), np.int64), (pictures, np.uint8)]


def _bytes(shapes: list[tuple[tuple[int, ...], type]]) -> int:
    return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes)
