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
        row_passes: times that an update reads or writes the numbers of a row, counted on the code, for the planner.
    """

    decay_in_gradient: bool
    row_passes: int

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
    """SGD with momentum and L2 weight decay, as `torch.optim.SGD`; rows not sampled in a step keep their momentum."""

    decay_in_gradient = True

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.row_passes = 6 if momentum else 3

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


class RowwiseAdagrad:
    """AdaGrad with one scalar a center: the sum of its mean squared gradients; weight decay is decoupled.

    row -= lr · gradient / (sqrt(sum of mean(gradient²)) + eps). As used for embedding tables by FBGEMM and TorchRec.
    """

    decay_in_gradient = False
    row_passes = 6

    def __init__(self, eps: float, weight_decay: float) -> None:
        self.eps = eps
        self.weight_decay = weight_decay

    def tables(self, centers_per_class: int, width: int, dtype: torch.dtype) -> list[TableSpec]:
        """See `RowOptimizer`."""
        return [TableSpec("squares", centers_per_class, torch.float32)]

    def update(self, lease: Lease, start: int, stop: int, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """See `RowOptimizer`."""
        sums = lease.read("squares", start, stop)
        flat = sums.view(-1)
        flat.add_(torch.linalg.vector_norm(gradient, dim=1).square_(), alpha=1 / gradient.shape[1])
        rates = flat.sqrt().add_(self.eps).reciprocal_().mul_(-lr)
        rows.mul_(1 - lr * self.weight_decay).addcmul_(gradient, rates[:, None])
        lease.write("squares", start, stop, sums)


class RowAdamW:
    """AdamW as `torch.optim.AdamW`; rows not sampled in a step keep their moments and their bias correction."""

    decay_in_gradient = False
    row_passes = 27

    def __init__(self, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weight_decay = weight_decay

    def tables(self, centers_per_class: int, width: int, dtype: torch.dtype) -> list[TableSpec]:
        """See `RowOptimizer`."""
        numbers = centers_per_class * width
        return [
            TableSpec("mean", numbers, dtype),
            TableSpec("square", numbers, dtype),
            TableSpec("updates", 1, torch.float32),
        ]

    def update(self, lease: Lease, start: int, stop: int, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """See `RowOptimizer`."""
        mean, square = lease.read("mean", start, stop), lease.read("square", start, stop)
        updates = lease.read("updates", start, stop).add_(1)
        mean.view_as(rows).lerp_(gradient, 1 - self.beta1)
        square.view_as(rows).mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        # Per class [n, 1]: the bias corrections of a class that has been updated that many times.
        mean_share = 1 - self.beta1**updates
        root_share = (1 - self.beta2**updates).sqrt_()
        change = torch.div(square.sqrt(), root_share).add_(self.eps).mul_(mean_share).reciprocal_().mul_(mean)
        rows.mul_(1 - lr * self.weight_decay).add_(change.view_as(rows), alpha=-lr)
        lease.write("mean", start, stop, mean)
        lease.write("square", start, stop, square)
        lease.write("updates", start, stop, updates)


def build_row_optimizer(config: HeadConfig) -> RowOptimizer:
    """The optimizer that `config` names."""
    if config.optimizer == "rowwise_adagrad":
        return RowwiseAdagrad(config.optimizer_eps, config.weight_decay)
    if config.optimizer == "adamw":
        return RowAdamW(config.beta1, config.beta2, config.optimizer_eps, config.weight_decay)
    return RowSGD(config.momentum)


def build_tables(config: HeadConfig, width: int) -> list[TableSpec]:
    """The tables of a head: its centers of `width` numbers, then its optimizer's state."""
    k, dtype = config.centers_per_class, getattr(torch, config.dtype)
    return [TableSpec("centers", k * width, dtype), *build_row_optimizer(config).tables(k, width, dtype)]
