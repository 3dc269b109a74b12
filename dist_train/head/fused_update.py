"""The optimizer's step by a kernel: a row and its state are read once and written once, in the tables themselves."""

from typing import NamedTuple

import torch
from torch import Tensor

from dist_train.head.kernels.tiles import power_of_two
from dist_train.head.kernels.update import update_kernel
from dist_train.head.optimizers import RowAdamW, RowOptimizer, RowSGD, RowwiseAdagrad
from dist_train.head.storage import Lease


class _Form(NamedTuple):
    """What the kernel takes of an optimizer."""

    name: str
    states: tuple[str, ...]
    decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


def update_rows(
    optimizer: RowOptimizer,
    lease: Lease,
    start: int,
    stop: int,
    gradient: Tensor,
    lr: float,
    *,
    width: int,
    weight_decay: float,
    normalised: bool,
    squares: Tensor | None,
    proceed: Tensor | None,
) -> None:
    """Project the gradient of chosen classes [start, stop), and update their centers and their state in place.

    Args:
        optimizer: whose formula it is.
        lease: on the chosen classes.
        start: first class.
        stop: one past the last.
        gradient: [n·K, D] of the centers, before its projection.
        lr: learning rate.
        width: numbers D a center.
        weight_decay: of the rows.
        normalised: the margin normalises centers.
        squares: [n·K] receives each center's sum of the squares of the gradient; None: nobody asks.
        proceed: [] bool; False leaves everything as it is; None: proceed.
    """
    form = _form(optimizer, weight_decay)
    centers, places = lease.places("centers", start, stop)
    tables = {name: lease.places(name, start, stop)[0] for name in form.states}
    first = tables.get("momentum", tables.get("mean", tables.get("squares", centers)))
    if "updates" in tables:  # of whole classes, so not a center's to write
        _count(tables["updates"], places, proceed)
    wide = power_of_two(width)
    k = centers.shape[1] // width
    update_kernel[(len(gradient),)](
        centers,
        first,
        tables.get("square", centers),
        tables.get("updates", centers),
        centers if places is None else places,
        gradient,
        gradient if squares is None else squares,
        gradient if proceed is None else proceed,
        lr,
        form.decay,
        form.beta1,
        form.beta2,
        form.eps,
        lease.store.rounder.key,
        start * k if places is None else 0,  # else every block's noise would be that of the first
        width,
        WP=wide,
        K=k,
        OPTIMIZER=form.name,
        INDEXED=places is not None,
        NORMALISED=normalised,
        BFLOAT16=centers.dtype == torch.bfloat16,
        MEASURE=squares is not None,
        ASKED=proceed is not None,
        num_warps=max(1, min(8, wide // 256)),
    )


def _count(updates: Tensor, places: Tensor | None, proceed: Tensor | None) -> None:
    """One more update of the classes at `places`, or of all [n, 1] that there are, if the step proceeds."""
    one = torch.ones((), device=updates.device) if proceed is None else proceed.float()
    if places is None:
        updates.add_(one)
    else:
        updates.index_add_(0, places, one.expand(len(places), 1))


def _form(optimizer: RowOptimizer, weight_decay: float) -> _Form:
    if isinstance(optimizer, RowSGD):
        if not optimizer.momentum:
            return _Form("sgd", (), weight_decay)
        return _Form("momentum", ("momentum",), weight_decay, optimizer.momentum)
    if isinstance(optimizer, RowwiseAdagrad):
        return _Form("rowwise_adagrad", ("squares",), weight_decay, eps=optimizer.eps)
    if isinstance(optimizer, RowAdamW):
        states = ("mean", "square", "updates")
        return _Form("adamw", states, weight_decay, optimizer.beta1, optimizer.beta2, optimizer.eps)
    raise TypeError(f"no kernel for {type(optimizer).__name__}")
