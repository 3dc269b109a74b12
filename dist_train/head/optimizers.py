"""Optimizers that read, update and write only the rows they are given, block by block."""

from typing import Protocol

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.storage import Lease, TableSpec


class RowOptimizer(Protocol):
    """Updates a block of class centers and the state that belongs to it.

    Attributes:
        decay_in_gradient: weight decay is added to the gradient by the caller (L2), not taken from the rows here.
    """

    decay_in_gradient: bool

    def tables(self, centers_per_class: int, width: int, dtype: torch.dtype) -> list[TableSpec]:
        """State tables for classes of K centers of `width` numbers."""
        ...

    def update(self, lease: Lease, start: int, stop: int, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """Change `rows` in place and write the state back.

        Args:
            lease: holds the chosen classes' state.
            start: first class of the block, counted among the chosen.
            stop: one past its last class.
            rows: [n·K, width] float32, the block's centers.
            gradient: [n·K, width] float32; may be overwritten.
            lr: learning rate.
        """
        ...


class RowSGD:
    """SGD with momentum and L2 weight decay, as `torch.optim.SGD`; a row's momentum rests while it is not chosen."""

    decay_in_gradient = True

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def tables(self, centers_per_class: int, width: int, dtype: torch.dtype) -> list[TableSpec]:
        """See `RowOptimizer`."""
        return [TableSpec("momentum", centers_per_class * width, dtype)] if self.momentum else []

    def update(self, lease: Lease, start: int, stop: int, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """See `RowOptimizer`."""
        if not self.momentum:
            rows.add_(gradient, alpha=-lr)
            return
        moment = lease.read("momentum", start, stop)
        flat = moment.view_as(rows)
        torch.add(gradient, flat, alpha=self.momentum, out=flat)
        rows.add_(flat, alpha=-lr)
        lease.write("momentum", start, stop, moment)


def build_optimizer(config: HeadConfig) -> RowOptimizer:
    """The optimizer that `config` names."""
    return RowSGD(config.momentum)
