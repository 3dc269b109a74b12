"""The margin-softmax over chosen classes in blocks, forward and gradients, without autograd.

One pass over the chosen rows computes a block's logits, their exponentials against a running maximum, and at once
their share of d loss / d queries, as long as the block's rows are in cache. The exponentials that are kept,
[rows, G] numbers, are the low-rank form of the rows' gradient: gradient = weights @ scaled queries. It is
multiplied out block by block in the optimizer's step and never exists as a whole.

Shapes as in `records`.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.config import CPU_BLOCK_ROWS
from dist_train.head.filtering import FilteredBlock, kept_classes, kept_samples
from dist_train.head.margins import Margin
from dist_train.head.records import Pass, Targets, spans
from dist_train.head.storage import Lease
from dist_train.head.workspace import Workspace
from dist_train.runtime.matmul import add_matmul, matmul

_LOWEST = -1e30  # stands for minus infinity where a difference of two must not be NaN


def inverse_norms(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """1 / norm of each row [n, D] -> [n]; 0 for a zero row, so that it has cosine 0 with everything and rests."""
    norms = torch.linalg.vector_norm(rows, dim=1, out=out)
    return norms.reciprocal_().nan_to_num_(posinf=0.0)


class BlockSoftmax:
    """Forward pass and gradients over the chosen rows of one rank.

    Args:
        margin: the loss.
        centers_per_class: K.
        interclass_threshold: negatives above this cosine are ignored; None: none is.
        filter_eps: samples and rows whose softmax weights all lie below are left out of the backward.
        block_rows: rows at a time; None: fitted to caches.
        budget_mb: memory for logits kept until the step.
        device: where it computes.
    """

    def __init__(
        self,
        margin: Margin,
        centers_per_class: int,
        interclass_threshold: float | None,
        filter_eps: float,
        block_rows: int | None,
        budget_mb: int,
        device: torch.device,
    ) -> None:
        self.margin = margin
        self.k = centers_per_class
        self.threshold = None if interclass_threshold is None else interclass_threshold * margin.scale
        self.filter_eps = filter_eps
        self.block_rows = block_rows
        self.budget = budget_mb * 2**20
        self.device = device
        self.workspace = Workspace(device)
        self._spare: list[Tensor] = []  # flat buffers of steps gone by

    def recycle(self, done: Pass) -> None:
        """Take back the buffer of a micro-batch's weights."""
        if done.weights is not None:
            self._put_back(done.weights)
            done.weights = None

    def find_targets(self, lease: Lease, targets: Targets, queries: Tensor) -> None:
        """Fill in the targets' nearest centers and cosines (inner products where not normalised)."""
        rows = lease.pick("centers", targets.positions).view(-1, queries.shape[1])  # [T·K, D]
        inverse = inverse_norms(rows) if self.margin.normalised else torch.ones_like(rows[:, 0])
        by_class = rows.view(-1, self.k, queries.shape[1])
        products = (by_class @ queries[targets.samples].unsqueeze(2)).squeeze(2) * inverse.view(-1, self.k)
        best, targets.nearest = products.max(dim=1)  # [T, K] -> [T]
        picked = torch.arange(len(best), device=self.device) * self.k + targets.nearest
        targets.inverse = inverse[picked]
        targets.unit = rows[picked] * targets.inverse[:, None]
        targets.cosines = best / self.margin.scale

    def form_target_logits(self, targets: Targets, norms: Tensor, classes: Tensor) -> None:
        """Apply the margin to the targets, with its derivatives.

        Args:
            targets: with cosines.
            norms: [G] of the raw embeddings.
            classes: [T] counted from this rank's first.
        """
        with torch.enable_grad():
            cosines = targets.cosines.requires_grad_()
            target_norms = norms[targets.samples].requires_grad_()
            logits = self.margin.target_logits(cosines, target_norms, classes)
            slopes, targets.norm_slopes = torch.autograd.grad(
                logits.sum(), [cosines, target_norms], allow_unused=True, materialize_grads=True
            )
        targets.cosines, targets.logits = cosines.detach(), logits.detach()
        targets.slopes = slopes / self.margin.scale

    def forward(
        self,
        lease: Lease,
        classes: NDArray[np.int64] | None,
        queries: Tensor,
        targets: Targets,
        kept_bytes: int,
        training: bool,
    ) -> Pass:
        """One pass over the chosen rows.

        Args:
            lease: the chosen rows.
            classes: the chosen classes.
            queries: [G, D].
            targets: with logits.
            kept_bytes: logits kept already by earlier micro-batches.
            training: form d loss / d queries, and keep what the step needs.
        """
        samples, width = queries.shape
        rows_total = lease.count * self.k
        block = self._block_classes(samples)
        keep = training and kept_bytes + 4 * rows_total * samples <= self.budget
        weights = self._take(rows_total if keep else min(block * self.k, rows_total), samples)
        inverse = queries.new_empty(rows_total) if self.margin.normalised else None
        shifts = queries.new_empty((-(-lease.count // block), samples))
        peaks = torch.empty_like(shifts)
        top = queries.new_full((samples,), _LOWEST)
        total = queries.new_zeros(samples)
        top[targets.samples] = targets.logits
        total[targets.samples] = 1.0
        # Where rows are to be filtered, d loss / d queries waits for the sum over all ranks.
        pull = torch.zeros_like(queries) if training and not self.filter_eps else None
        for number, (start, stop) in enumerate(spans(0, lease.count, block)):
            rows = lease.read("centers", start, stop).view(-1, width)
            low, high = start * self.k, stop * self.k
            some = weights[low:high] if keep else weights[: high - low]
            scale = None if inverse is None else inverse_norms(rows, out=inverse[low:high])
            slope = self._logits(rows, scale, targets, start, queries, some)
            torch.amax(some, dim=0, out=peaks[number])
            higher = torch.maximum(top, peaks[number], out=shifts[number])
            fade = torch.sub(top, higher).exp_()
            some.sub_(higher).exp_()
            total.mul_(fade).add_(some.sum(dim=0))
            top = higher
            if slope is not None:
                some.mul_(slope)
            if pull is not None:
                if scale is not None:
                    some.mul_(scale[:, None])
                add_matmul(pull.mul_(fade[:, None]), some.T, rows)
        kept = weights if keep else None
        if kept is None:
            self._put_back(weights)
        return Pass(lease, classes, block, queries, targets, top, total, inverse, shifts, peaks, kept, pull)

    def filter(self, done: Pass) -> bool:
        """Leave out samples and classes without a softmax weight of `filter_eps`; form `done.pull` from the rest.

        A sample is dropped from a whole block, by its largest logit there; a class for all samples. Targets stay.
        Where classes are left out, the lease is left to the caller.

        Returns:
            Whether classes are left out; `done.classes` are then the others.
        """
        width, kept_bytes = done.queries.shape[1], done.kept_bytes
        alive = (done.peaks - done.log_sum >= math.log(self.filter_eps)).cpu().numpy()
        numbers = np.union1d(np.flatnonzero(alive.any(axis=1)), done.targets.places // done.block)
        done.pull, done.top = torch.zeros_like(done.queries), done.log_sum
        cuts, kept = [0], [done.targets.positions[:0]]
        for number in numbers.tolist():
            start = number * done.block
            stop = min(start + done.block, done.lease.count)
            few = kept_samples(alive[number])
            samples = None if few is None else torch.from_numpy(few).to(self.device)
            some = self._weights_of(done, number, start, stop, samples)
            here = done.targets.positions[done.targets.between(start, stop)] - start
            places = kept_classes(some, self.filter_eps, self.k, here)
            scale = None if done.inverse is None else done.inverse[start * self.k : stop * self.k]
            whole = places is None
            if places is None:
                rows = done.lease.read("centers", start, stop)
                places = torch.arange(stop - start, device=self.device)
            else:
                rows = done.lease.pick("centers", places + start)
                some = some.unflatten(0, (-1, self.k))[places].flatten(0, 1)
                scale = None if scale is None else scale.view(-1, self.k)[places].flatten()
            if scale is not None:
                some.mul_(scale[:, None])
            left = FilteredBlock(samples, some, whole)
            left.add_transposed(rows.view(-1, width), done.pull)
            # Weights of all samples are a view of those kept already, or of the workspace.
            kept_bytes += some.nbytes if samples is not None or done.weights is None else 0
            fits = kept_bytes <= self.budget and (samples is not None or done.weights is not None)
            done.filtered.append(left if fits else None)
            kept.append(places + start)
            cuts.append(cuts[-1] + len(places))
        done.cuts = np.array(cuts)
        if cuts[-1] == done.lease.count:
            return False
        places = torch.cat(kept)
        if done.inverse is not None:
            done.inverse = done.inverse.view(-1, self.k)[places].flatten()
        host = places.cpu().numpy()
        done.targets.move_to(host)
        done.classes = host if done.classes is None else done.classes[host]
        return True

    def _weights_of(self, done: Pass, number: int, start: int, stop: int, samples: Tensor | None) -> Tensor:
        """Softmax weights times slopes in a block, of `samples` [a] or all: [n·K, a], not over row norms."""
        if done.weights is not None:
            some, factors = done.weights[start * self.k : stop * self.k], (done.shifts[number] - done.log_sum).exp_()
            return some.mul_(factors) if samples is None else some.index_select(1, samples).mul_(factors[samples])
        rows = done.lease.read("centers", start, stop).view(-1, done.queries.shape[1])
        again = self.workspace.get("again", (len(rows), len(done.queries)))
        self._weights_again(done, rows, start, stop, again)
        return again if samples is None else again.index_select(1, samples)

    def row_gradient(self, done: Pass, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Gradient of chosen rows before its projection: sum over samples of d loss / d product · query.

        Args:
            done: one micro-batch.
            rows: [n·K, D] centers of its classes [start, stop), which lie within one of its blocks.
            start: first class.
            stop: one past the last.
            out: [n·K, D] receives the gradient.
        """
        samples, width = done.queries.shape
        low, high = start * self.k, stop * self.k
        factors = (done.scale / samples).expand(samples)
        filtered, first = done.filtered_at(start)
        some: Tensor | None = None
        if done.weights is not None and done.cuts is None:
            some = done.weights[low:high]
            factors = done.shifts[start // done.block].sub(done.log_sum).exp_().mul_(factors)
        elif filtered is None:
            some = self.workspace.get("again", (high - low, samples))
            self._weights_again(done, rows, start, stop, some)
            if done.inverse is not None:
                some.mul_(done.inverse[low:high, None])
        scaled = torch.mul(done.queries, factors[:, None], out=self.workspace.get("scaled", (samples, width)))
        if some is not None:
            matmul(some, scaled, out=out)
        elif filtered is not None:
            filtered.times(scaled, low - first * self.k, high - first * self.k, out)
        targets, here = done.targets, done.targets.between(start, stop)
        if here.stop > here.start:
            pulls = targets.pull[here] * targets.inverse[here] * done.scale
            places = (targets.positions[here] - start) * self.k + targets.nearest[here]
            out.index_add_(0, places, done.queries[targets.samples[here]] * pulls[:, None])

    def _block_classes(self, samples: int) -> int:
        fitting = self.budget // (4 * samples)
        wanted = self.block_rows or (CPU_BLOCK_ROWS if self.device.type == "cpu" else fitting)
        return max(1, min(wanted, fitting) // self.k)

    def _take(self, rows: int, samples: int) -> Tensor:
        buffer = self._spare.pop() if self._spare else None
        if buffer is None or buffer.numel() < rows * samples:
            buffer = torch.empty(rows * samples, device=self.device)
        return buffer[: rows * samples].view(rows, samples)

    def _put_back(self, taken: Tensor) -> None:
        if taken._base is not None:  # always: `_take` gives views of flat buffers
            self._spare.append(taken._base)

    def _weights_again(self, done: Pass, rows: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
        """Softmax weights times slopes of negatives among chosen classes [start, stop), from their centers."""
        inverse = None if done.inverse is None else done.inverse[start * self.k : stop * self.k]
        slope = self._logits(rows, inverse, done.targets, start, done.queries, out)
        out.sub_(done.log_sum).exp_()
        return out if slope is None else out.mul_(slope)

    def _logits(
        self, rows: Tensor, inverse: Tensor | None, targets: Targets, start: int, queries: Tensor, out: Tensor
    ) -> Tensor | None:
        """Logits of the negatives among chosen classes from `start` on into `out` [n·K, G]; -inf elsewhere.

        Returns:
            [n·K, G] d logit / d inner product of query and unit center; None where 1 throughout.
        """
        samples = len(queries)
        matmul(rows, queries.T, out=out)
        if inverse is not None:
            out.mul_(inverse[:, None])
        by_class = out.view(-1, self.k, samples)
        if self.k > 1:
            best, nearest = by_class.max(dim=1, keepdim=True)
            by_class.fill_(-torch.inf).scatter_(1, nearest, best)
        if self.threshold is not None:
            out.masked_fill_(out > self.threshold, -torch.inf)
        here = targets.between(start, start + len(by_class))
        if here.stop > here.start:
            by_class[targets.positions[here] - start, :, targets.samples[here]] = -torch.inf
        return self.margin.negatives(out)
