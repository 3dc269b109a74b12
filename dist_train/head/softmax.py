"""The margin-softmax over chosen classes in blocks, forward and gradients, without autograd.

One pass over the chosen rows computes a block's logits, their exponentials against a running maximum, and at once
their share of d loss / d queries, as long as the block's rows are in cache. The exponentials that are kept,
[rows, G] numbers, are the low-rank form of the rows' gradient: gradient = weights @ (factors · queries). It is
multiplied out block by block in the optimizer's step and never exists as a whole.

Shapes: G samples of the global batch, k chosen classes of this rank, K centers a class, D numbers a center.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.margins import Margin
from dist_train.head.storage import Lease
from dist_train.head.workspace import Workspace

_LOWEST = -1e30  # stands for minus infinity where a difference of two must not be NaN
_CPU_BLOCK_ROWS = 1024  # a block of 512 float32 numbers a row, and its logits, then stay in a core's caches


@dataclass
class Targets:
    """Which samples' classes this rank owns and has chosen (it always chooses its positives); T of them.

    Attributes:
        samples: [T] indices into the global batch.
        positions: [T] places of their classes among the chosen, ascending.
        places: the same on the host, where blocks are cut.
        unit: [T, D] the target's nearest center, normalised (raw where the margin does not normalise).
        inverse: [T] the inverse of that center's norm (1 where not normalised).
        rows: [T] row of that center among the chosen rows.
        cosines: [T] cosine between sample and that center.
        slopes: [T] d target logit / d inner product of query and unit center.
        norm_slopes: [T] d target logit / d embedding norm.
        logits: [T].
    """

    samples: Tensor
    positions: Tensor
    places: NDArray[np.int64]
    unit: Tensor = field(init=False)
    inverse: Tensor = field(init=False)
    rows: Tensor = field(init=False)
    cosines: Tensor = field(init=False)
    slopes: Tensor = field(init=False)
    norm_slopes: Tensor = field(init=False)
    logits: Tensor = field(init=False)

    def between(self, start: int, stop: int) -> slice:
        """Those whose class lies in [start, stop) of the chosen."""
        low, high = np.searchsorted(self.places, [start, stop])
        return slice(int(low), int(high))


@dataclass
class Pending:
    """What one micro-batch leaves for the optimizer's step.

    Attributes:
        lease: on the rows of the chosen classes.
        classes: the chosen classes, sorted local ids on the host; None: all.
        queries: [G, D].
        targets: this rank's targets.
        block: classes a block.
        weights: [k·K, G] exponentials over row norms, kept from the forward; None: to be formed again.
        shifts: [blocks, G] the maximum that each block's exponentials are relative to.
        log_sum: [G] logarithm of the sum of exponentials over all ranks.
        inverse: [k·K] inverse row norms; None where not normalised.
        target_pull: [T] d loss / d inner product of query and unit target center.
        scale: [] gradient of the final loss with respect to this one's.
    """

    lease: Lease
    classes: NDArray[np.int64] | None
    queries: Tensor
    targets: Targets
    block: int
    weights: Tensor | None
    shifts: Tensor
    log_sum: Tensor
    inverse: Tensor | None
    target_pull: Tensor
    scale: Tensor


def spans(count: int, block: int) -> Iterator[tuple[int, int]]:
    """[start, stop) blocks that cover `count`."""
    for start in range(0, count, block):
        yield start, min(start + block, count)


def inverse_norms(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """1 / norm of each row [n, D] -> [n]; 0 for a zero row, so that it has cosine 0 with everything and rests."""
    norms = torch.linalg.vector_norm(rows, dim=1, out=out)
    return norms.reciprocal_().nan_to_num_(posinf=0.0)


class BlockSoftmax:
    """Forward pass and row gradients over the chosen rows of one rank.

    Args:
        margin: the loss.
        centers_per_class: K.
        interclass_threshold: negatives above this cosine are ignored; None: none is.
        block_rows: rows at a time; None: fitted to caches.
        budget_mb: memory for logits kept until the step.
        device: where it computes.
    """

    def __init__(
        self,
        margin: Margin,
        centers_per_class: int,
        interclass_threshold: float | None,
        block_rows: int | None,
        budget_mb: int,
        device: torch.device,
    ) -> None:
        self.margin = margin
        self.k = centers_per_class
        self.threshold = None if interclass_threshold is None else interclass_threshold * margin.scale
        self.block_rows = block_rows
        self.budget = budget_mb * 2**20
        self.device = device
        self.workspace = Workspace(device)
        self._spare: list[Tensor] = []  # buffers of steps gone by

    def _take(self, rows: int, samples: int) -> Tensor:
        buffer = self._spare.pop() if self._spare else None
        if buffer is None or buffer.numel() < rows * samples:
            buffer = torch.empty(rows * samples, device=self.device)
        return buffer[: rows * samples].view(rows, samples)

    def recycle(self, pending: Pending) -> None:
        """Take back the buffer of a micro-batch whose step is over."""
        if pending.weights is not None:
            base = pending.weights._base
            self._spare.append(pending.weights.flatten() if base is None else base)
            pending.weights = None

    def block_classes(self, samples: int) -> int:
        """Classes in a block for a global batch of `samples`."""
        fitting = self.budget // (4 * samples)
        wanted = self.block_rows or (_CPU_BLOCK_ROWS if self.device.type == "cpu" else fitting)
        return max(1, min(wanted, fitting) // self.k)

    def find_targets(self, lease: Lease, targets: Targets, queries: Tensor) -> None:
        """Fill in the targets' centers and cosines (inner products where not normalised)."""
        rows = lease.pick("centers", targets.positions).view(-1, queries.shape[1])  # [T·K, D]
        inverse = inverse_norms(rows) if self.margin.normalised else torch.ones_like(rows[:, 0])
        products = (rows.view(-1, self.k, queries.shape[1]) @ queries[targets.samples].unsqueeze(2)).squeeze(2)
        products *= inverse.view(-1, self.k)  # [T, K]
        best, nearest = products.max(dim=1)
        picked = torch.arange(len(nearest), device=self.device) * self.k + nearest
        targets.inverse = inverse[picked]
        targets.unit = rows[picked] * targets.inverse[:, None]
        targets.rows = targets.positions * self.k + nearest
        targets.cosines = best / self.margin.scale

    def form_target_logits(self, targets: Targets, norms: Tensor, classes: Tensor) -> None:
        """Apply the margin to the targets, with its derivatives."""
        with torch.enable_grad():
            cosines = targets.cosines.requires_grad_()
            target_norms = norms[targets.samples].detach().requires_grad_()
            logits = self.margin.target_logits(cosines, target_norms, classes)
            slope, norm_slope = torch.autograd.grad(
                logits.sum(), [cosines, target_norms], allow_unused=True, materialize_grads=True
            )
        targets.cosines = cosines.detach()
        targets.logits = logits.detach()
        targets.slopes = slope / self.margin.scale
        targets.norm_slopes = norm_slope

    def logits(
        self,
        rows: Tensor,
        inverse: Tensor | None,
        start: int,
        stop: int,
        queries: Tensor,
        targets: Targets,
        out: Tensor,
    ) -> Tensor | None:
        """Logits of the negatives among chosen classes [start, stop); -inf elsewhere.

        Args:
            rows: [n·K, D] their centers.
            inverse: [n·K] inverse norms.
            start: first class.
            stop: one past the last.
            queries: [G, D].
            targets: this rank's targets.
            out: [n·K, G] receives the logits.

        Returns:
            [n·K, G] d logit / d inner product of query and unit center; None where 1 throughout.
        """
        torch.mm(rows, queries.T, out=out)
        if inverse is not None:
            out.mul_(inverse[:, None])
        if self.k > 1:
            by_class = out.view(-1, self.k, out.shape[1])
            best, nearest = by_class.max(dim=1, keepdim=True)
            by_class.fill_(-torch.inf).scatter_(1, nearest, best)
        if self.threshold is not None:
            out.masked_fill_(out > self.threshold, -torch.inf)
        here = targets.between(start, stop)
        if here.stop > here.start:
            places = targets.positions[here] - start
            out.view(-1, self.k, out.shape[1])[places, :, targets.samples[here]] = -torch.inf
        return self.margin.negatives(out)

    def forward(
        self, lease: Lease, queries: Tensor, targets: Targets, kept_bytes: int, with_gradient: bool
    ) -> "Forward":
        """One pass over the chosen rows.

        Args:
            lease: the chosen rows.
            queries: [G, D].
            targets: filled in.
            kept_bytes: logits kept already by earlier micro-batches.
            with_gradient: form d loss / d queries and keep what the step needs.
        """
        samples = len(queries)
        rows_total = lease.count * self.k
        block = self.block_classes(samples)
        keep = with_gradient and kept_bytes + 4 * rows_total * samples <= self.budget
        weights = self._take(rows_total, samples) if keep else self.workspace.get("again", (block * self.k, samples))
        inverse = queries.new_empty(rows_total) if self.margin.normalised else None
        shifts = queries.new_empty((-(-lease.count // block), samples))
        top = queries.new_full((samples,), _LOWEST)
        total = queries.new_zeros(samples)
        top[targets.samples] = targets.logits
        total[targets.samples] = 1.0
        pull = torch.zeros_like(queries) if with_gradient else None
        for number, (start, stop) in enumerate(spans(lease.count, block)):
            rows = lease.read("centers", start, stop).view(-1, queries.shape[1])
            low, high = start * self.k, stop * self.k
            some = weights[low:high] if keep else weights[: high - low]
            scale = None if inverse is None else inverse_norms(rows, out=inverse[low:high])
            slope = self.logits(rows, scale, start, stop, queries, targets, some)
            higher = torch.maximum(top, some.amax(dim=0), out=shifts[number])
            fade = torch.sub(top, higher).exp_()
            some.sub_(higher).exp_()
            total.mul_(fade).add_(some.sum(dim=0))
            top = higher
            if pull is not None:
                if slope is not None:
                    some.mul_(slope)
                if scale is not None:
                    some.mul_(scale[:, None])
                pull.mul_(fade[:, None]).addmm_(some.T, rows)
        return Forward(top, total, pull, weights if keep else None, shifts, inverse, block)

    def row_gradient(self, pending: Pending, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Gradient of chosen rows, before its projection: sum over samples of d loss / d product · query.

        Args:
            pending: of one micro-batch.
            rows: [n·K, D] centers of its classes [start, stop), which lie within one of its blocks.
            start: first class.
            stop: one past the last.
            out: [n·K, D] receives the gradient.
        """
        low, high = start * self.k, stop * self.k
        queries, targets = pending.queries, pending.targets
        samples = len(queries)
        if pending.weights is not None:
            some = pending.weights[low:high]
            factors = pending.shifts[start // pending.block].sub(pending.log_sum).exp_()
            factors.mul_(pending.scale / samples)
        else:
            some = self.workspace.get("again", (high - low, samples))
            inverse = None if pending.inverse is None else pending.inverse[low:high]
            slope = self.logits(rows, inverse, start, stop, queries, targets, some)
            some.sub_(pending.log_sum).exp_()
            if slope is not None:
                some.mul_(slope)
            if inverse is not None:
                some.mul_(inverse[:, None])
            factors = (pending.scale / samples).expand(samples)
        scaled = torch.mul(queries, factors[:, None], out=self.workspace.get("scaled", tuple(queries.shape)))
        torch.mm(some, scaled, out=out)
        here = targets.between(start, stop)
        if here.stop > here.start:
            pulls = pending.target_pull[here] * targets.inverse[here] * pending.scale
            out.index_add_(0, targets.rows[here] - low, queries[targets.samples[here]] * pulls[:, None])


@dataclass
class Forward:
    """What one rank's pass over its chosen rows gives.

    Attributes:
        top: [G] largest logit.
        total: [G] sum of exponentials relative to it, the target's included where this rank owns it.
        pull: [G, D] sum of exponentials · slope · unit center over negatives; None without gradient.
        weights: see `Pending`.
        shifts: see `Pending`.
        inverse: see `Pending`.
        block: see `Pending`.
    """

    top: Tensor
    total: Tensor
    pull: Tensor | None
    weights: Tensor | None
    shifts: Tensor
    inverse: Tensor | None
    block: int
