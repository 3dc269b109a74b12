"""A table as it stood at one moment, copied while training goes on to change it."""

from threading import Lock
from time import sleep

import torch
from torch import Tensor

_BLOCK_BYTES = 1 << 20  # copied at a time: training waits for one such block at most
_YIELD_S = 1e-4


class TableSnapshot:
    """A copy of a table in host memory, made in the background: copy-on-write.

    `fill` copies block after block, in a thread of its own. Training calls `keep` before it changes rows, which copies
    the ones that `fill` has not reached. A table on a GPU is copied whole at once, since its bus is fast.

    Args:
        table: [n, width] of any type.
        copy: memory on the CPU, of the table's shape and type, that becomes the copy; None: some of this process.

    Attributes:
        copy: [n, width] on the CPU; the table at the time of construction once `fill` has returned.
    """

    def __init__(self, table: Tensor, copy: Tensor | None = None) -> None:
        self._table = table
        self._lock = Lock()
        self._asking = False  # `keep` waits for the lock; without the flag `fill` would take it again and again
        self._next = 0  # rows before this one are copied
        self._kept = torch.zeros(len(table), dtype=torch.bool)  # so are rows that `keep` took
        self.copy = torch.empty(table.shape, dtype=table.dtype) if copy is None else copy
        if table.device.type != "cpu":
            self.copy.copy_(table)
            self._next = len(table)

    @property
    def complete(self) -> bool:
        """Whether the whole table is copied."""
        return self._next == len(self._table)

    def keep(self, rows: Tensor) -> None:
        """Copy rows [k], distinct int64 numbers, that are about to change."""
        self._asking = True
        with self._lock:
            self._asking = False
            if not self.complete:
                self._take(rows[(rows >= self._next) & ~self._kept[rows]])

    def fill(self) -> None:
        """Copy all rows that are not copied yet."""
        block = max(1, _BLOCK_BYTES // max(1, self._table.shape[1] * self._table.element_size()))
        while not self.complete:
            while self._asking:
                sleep(_YIELD_S)
            with self._lock:
                start, stop = self._next, min(self._next + block, len(self._table))
                kept = self._kept[start:stop]
                if kept.any():
                    self._take(torch.nonzero(~kept)[:, 0] + start)
                else:
                    self.copy[start:stop] = self._table[start:stop]
                self._next = stop

    def _take(self, rows: Tensor) -> None:
        self.copy.index_copy_(0, rows, self._table.index_select(0, rows))
        self._kept[rows] = True
