"""The optimizer's step: gradients multiplied out, projected and applied block by block."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.kernels import updates_fused
from dist_train.head.logits import inverse_norms
from dist_train.head.optimizers import RowOptimizer
from dist_train.head.sizes import spans
from dist_train.head.step import Step
from dist_train.head.storage import Lease, RowStore
from dist_train.head.tentative import Tentative
from dist_train.head.workspace import Workspace
from dist_train.runtime.distinct import distinct
from dist_train.runtime.to_device import to_device


class RowUpdate:
    """Applies the gradients of one or several micro-batches to the rows they chose.

    Args:
        optimizer: turns gradients into updates.
        store: holds the rows.
        weight_decay: applied to chosen rows.
        width: numbers D a center.
        normalised: the margin normalises centers.
    """

    def __init__(
        self, optimizer: RowOptimizer, store: RowStore, weight_decay: float, width: int, normalised: bool
    ) -> None:
        self.optimizer = optimizer
        self.store = store
        self.weight_decay = weight_decay
        self.decay = weight_decay if optimizer.decay_in_gradient else 0.0
        self.width = width
        self.normalised = normalised
        self.workspace = Workspace(store.device)
        self._fused = updates_fused(store.device)
        self._squares: Tensor | None = None
        self._proceed: Tensor | None = None

    def apply(
        self, micro_batches: list[Step], lr: float, measure: bool = False, proceed: Tensor | None = None
    ) -> Tensor | None:
        """Update every row that a micro-batch chose by the sum of its gradients; leases are used up.

        Args:
            micro_batches: of the step.
            lr: learning rate.
            measure: whether the gradient's size is asked for.
            proceed: [] bool, on the device; where it is False rows and their state stay as they are. None: proceed.

        Returns:
            [] sum of the squares of the gradient that the optimizer is given; None unless asked to `measure`.
        """
        self._squares = torch.zeros((), device=self.store.device) if measure else None
        self._proceed = proceed
        if len(micro_batches) == 1:
            self._apply_one(micro_batches[0], lr)
        else:
            self._apply_union(micro_batches, lr)
        return self._squares

    def _apply_one(self, step: Step, lr: float) -> None:
        lease = self._tentative(step.rows.lease)
        unread = self._fused and not step.weights.reads_rows and not step.further  # the kernel reads rows by itself
        for start, stop in step.weights.spans(0, lease.count):
            shape = ((stop - start) * step.rows.k, self.width)
            gradient = self.workspace.get("gradient", shape)
            stored = gradient if unread else lease.read("centers", start, stop)
            step.row_gradient(stored.view(shape), start, stop, gradient)
            self._write(lease, start, stop, stored, step.rows.inverse_of(start, stop), gradient, lr)
        lease.commit()

    def _apply_union(self, micro_batches: list[Step], lr: float) -> None:
        for step in micro_batches:
            step.rows.lease.release()
        chosen = [step.rows.classes for step in micro_batches if step.rows.classes is not None]
        union = distinct(np.concatenate(chosen)) if len(chosen) == len(micro_batches) else None
        lease = self._tentative(self.store.lease(None if union is None else torch.from_numpy(union)))
        for start, stop in spans(0, lease.count, micro_batches[0].rows.block):
            stored = lease.read("centers", start, stop)
            rows = stored.view(-1, self.width)
            classes = np.arange(start, stop) if union is None else union[start:stop]
            gradient = self.workspace.get("gradient", tuple(rows.shape)).zero_()
            for step in micro_batches:
                self._add(step, classes, stored, gradient.view_as(stored))
            inverse = inverse_norms(rows) if self.normalised else None
            self._write(lease, start, stop, stored, inverse, gradient, lr)
        lease.commit()

    def _tentative(self, lease: Lease) -> Lease:
        """The lease, or one whose writes follow `proceed`; the kernel looks at it by itself."""
        if self._proceed is None or self._fused:
            return lease
        return Tentative(lease, self._proceed)

    def _add(self, step: Step, classes: NDArray[np.int64], stored: Tensor, gradient: Tensor) -> None:
        """Add a micro-batch's gradient [n, K·D] of sorted `classes` [n], whose rows are `stored` [n, K·D]."""
        every = step.rows.classes
        own = np.arange(classes[0], classes[-1] + 1) if every is None else every
        # Both lists are sorted, so what they share is one range of the micro-batch's.
        low, high = (int(i) for i in np.searchsorted(own, [classes[0], classes[-1] + 1]))
        first = int(classes[0]) if every is None else 0
        for start, stop in step.weights.spans(low + first, high + first):
            shared = own[start - first : stop - first]
            places = to_device(torch.from_numpy(np.searchsorted(classes, shared)), self.store.device)
            rows = stored[places].view(-1, self.width)
            part = self.workspace.get("part", tuple(rows.shape))
            step.row_gradient(rows, start, stop, part)
            gradient.index_add_(0, places, part.view(len(places), -1))

    def _write(
        self,
        lease: Lease,
        start: int,
        stop: int,
        stored: Tensor,
        inverse: Tensor | None,
        gradient: Tensor,
        lr: float,
    ) -> None:
        """Project the gradient, update the block `stored` of chosen classes [start, stop) and store it.

        Args:
            lease: on the chosen classes.
            start: first class of the block.
            stop: one past its last.
            stored: [n, K·D] their rows.
            inverse: [n·K] inverse row norms; None where the margin does not normalise.
            gradient: [n·K, D]; scratch afterwards.
            lr: learning rate.
        """
        if self._fused:
            self._write_fused(lease, start, stop, gradient, lr)
            return
        rows = stored.view(-1, self.width)
        if inverse is not None:
            # The cosine does not depend on a row's length, so its gradient has no part along the row.
            along = torch.mul(gradient, rows, out=self.workspace.get("along", tuple(rows.shape))).sum(dim=1)
            along.mul_(inverse).mul_(inverse).neg_().add_(self.decay)
            gradient.addcmul_(rows, along[:, None])
        elif self.decay:
            gradient.add_(rows, alpha=self.decay)
        if self._squares is not None:
            self._squares += torch.linalg.vector_norm(gradient).square()
        self.optimizer.update(lease, start, stop, rows, gradient, lr)
        lease.write("centers", start, stop, stored)

    def _write_fused(self, lease: Lease, start: int, stop: int, gradient: Tensor, lr: float) -> None:
        """As `_write`, by the kernel."""
        from dist_train.head.fused_update import update_rows  # imports triton

        # The kernel of a refused step writes none: what is reported then is no number.
        squares = None if self._squares is None else gradient.new_full((len(gradient),), math.nan)
        update_rows(
            self.optimizer,
            lease,
            start,
            stop,
            gradient,
            lr,
            width=self.width,
            weight_decay=self.weight_decay,
            normalised=self.normalised,
            squares=squares,
            proceed=self._proceed,
        )
        if squares is not None and self._squares is not None:
            self._squares += squares.sum()
