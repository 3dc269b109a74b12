"""Rows whose changes hold only where a step proceeds, which the device decides."""

import torch
from torch import Tensor

from dist_train.head.storage import Lease


class Tentative(Lease):
    """A lease seen through a condition: what is written takes effect where the condition holds.

    Args:
        lease: on the rows.
        proceed: [] bool on the device.
    """

    def __init__(self, lease: Lease, proceed: Tensor) -> None:
        super().__init__(lease.store, lease.count, lease.classes)
        self._lease, self._proceed = lease, proceed
        self._before: dict[str, Tensor] = {}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """See `Lease.read`; the next `write` of this table is of these rows."""
        rows = self._lease.read(name, start, stop)
        self._before[name] = rows.clone()
        return rows

    def write(self, name: str, start: int, stop: int, rows: Tensor) -> None:
        """See `Lease.write`."""
        # A row of NaN is not chosen, whatever it was computed from; a bfloat16 row is rounded to itself.
        self._lease.write(name, start, stop, torch.where(self._proceed, rows, self._before.pop(name)))

    def commit(self) -> None:
        """See `Lease.commit`."""
        self._lease.commit()

    def release(self) -> None:
        """See `Lease.release`."""
        self._lease.release()
