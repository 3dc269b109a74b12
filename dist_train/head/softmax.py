"""The margin-softmax over chosen classes in blocks, forward and gradients, without autograd.

One pass over the chosen rows computes a block's logits, their exponentials against a running maximum, and at once
their share of d loss / d queries, as long as the block's rows are in cache. The exponentials stay for the step
within a memory budget (`weights`).

Shapes as in `records`.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.filtering import keep_what_counts
from dist_train.head.kernels import kernel_dtype
from dist_train.head.logits import Logits, inverse_norms
from dist_train.head.margins.base import Lifts, Margin
from dist_train.head.records import ChosenRows, Forward
from dist_train.head.sizes import block_classes, spans
from dist_train.head.step import Step
from dist_train.head.storage import Lease
from dist_train.head.targets import TargetPlaces, Targets
from dist_train.head.weights import Kept, Negatives, Recomputed
from dist_train.head.workspace import Workspace

if TYPE_CHECKING:
    from dist_train.head.kernel_weights import KernelWeights

_LOWEST = -1e30  # stands for minus infinity where a difference of two must not be NaN


class BlockSoftmax:
    """The forward pass over the chosen rows of one rank, and what of it stays for the step.

    Args:
        config: the `head` section.
        margin: the loss.
        device: where it computes.

    Attributes:
        budget: bytes of exponentials that may stay from the forward pass to the step.
        kernel_dtype: of the exponentials where the kernel forms them; None: torch's operators do, in float32.
    """

    def __init__(self, config: HeadConfig, margin: Margin, device: torch.device) -> None:
        self.config = config
        self.logits = Logits(config, margin, device)
        self.device = device
        self.budget = config.logits_budget(device.type)
        self.kernel_dtype = kernel_dtype(self.logits.arithmetic, bool(config.filter_eps), device)
        self.workspace = Workspace(device)
        self._spare: list[Tensor] = []  # flat buffers of earlier steps

    def block_classes(self, samples: int) -> int:
        """Classes handled at a time in a batch of G samples."""
        bytes_each = 4 if self.kernel_dtype is None else self.kernel_dtype.itemsize
        return block_classes(self.config, samples, self.device.type, self.budget, bytes_each)

    def forward(
        self,
        lease: Lease,
        classes: NDArray[np.int64] | None,
        queries: Tensor,
        targets: Targets,
        kept_bytes: int,
        apart: bool,
        training: bool,
    ) -> Forward:
        """One pass over the chosen rows.

        Args:
            lease: the chosen rows.
            classes: local ids of the chosen classes, sorted, on the host; None means all.
            queries: [G, D].
            targets: this rank's.
            kept_bytes: exponentials kept already by earlier micro-batches.
            apart: targets are no part of the sums, and each sum stands beside a 1, which is not in it.
            training: form d loss / d queries, and keep what the step needs.
        """
        samples, width = queries.shape
        k, places, margin = self.logits.k, targets.places, self.logits.margin
        rows_total, lifts = lease.count * k, margin.lifts()
        kernel = self._kernel(queries, places, lifts)
        block = self.block_classes(samples)
        dtype = torch.float32 if self.kernel_dtype is None else self.kernel_dtype
        keep = training and kept_bytes + rows_total * samples * dtype.itemsize <= self.budget
        exponentials = self._take(rows_total if keep else min(block * k, rows_total), samples, dtype)
        inverse = queries.new_empty(rows_total) if margin.normalised else None
        block_shift = queries.new_empty((-(-lease.count // block), samples))
        block_max = torch.empty_like(block_shift)
        as_they_are = kernel is not None and kernel.fixed
        max_logit = queries.new_full((samples,), 0.0 if apart or as_they_are else _LOWEST)
        exp_sum = queries.new_zeros(samples)
        if not apart:
            if not as_they_are:
                max_logit[places.samples] = targets.logits
            exp_sum[places.samples] = (targets.logits - max_logit[places.samples]).exp()
        # Where rows are to be filtered, d loss / d queries waits for the sum over all ranks.
        gradient = torch.zeros_like(queries) if training and not self.config.filter_eps else None
        for number, (start, stop) in enumerate(spans(0, lease.count, block)):
            rows = lease.read("centers", start, stop).view(-1, width)
            low, high = start * k, stop * k
            some = exponentials[low:high] if keep else exponentials[: high - low]
            scale = None if inverse is None else inverse_norms(rows, out=inverse[low:high])
            if kernel is None:
                slope = self.logits.of_negatives(rows, scale, places, start, queries, lifts, some)
                torch.amax(some, dim=0, out=block_max[number])
            else:
                rows = rows.to(dtype)
                block_max[number] = max_logit if as_they_are else kernel.largest(rows, scale, start)
            higher = torch.maximum(max_logit, block_max[number], out=block_shift[number])
            fade = torch.sub(max_logit, higher).exp_()
            max_logit = higher
            if kernel is None:
                some.sub_(higher).exp_()
                exp_sum.mul_(fade).add_(some.sum(dim=0))
                if slope is not None:
                    some.mul_(slope)
                if gradient is not None and scale is not None:
                    some.mul_(scale[:, None])
            else:
                exp_sum.mul_(fade).add_(kernel.form(rows, scale, start, higher, some))
            if gradient is not None:
                self.logits.arithmetic.add_matmul(gradient.mul_(fade[:, None]), some.T, rows)
        if not keep:
            self._put_back(exponentials)
        chosen = ChosenRows(lease, classes, k, block, places, inverse)
        kept = exponentials if keep else None
        return Forward(
            chosen, queries, targets, apart, max_logit, exp_sum, block_shift, block_max, kept, gradient, lifts, kernel
        )

    def _kernel(self, queries: Tensor, places: TargetPlaces, lifts: Lifts | None) -> "KernelWeights | None":
        if self.kernel_dtype is None:
            return None
        from dist_train.head.kernel_weights import KernelWeights  # imports triton

        return KernelWeights(self.logits, self.kernel_dtype, queries, places, lifts)

    def negatives(self, forward: Forward, log_sum: Tensor) -> Negatives:
        """The negatives' part of the gradients, without rows and samples whose weights do not count.

        Args:
            forward: a pass in training.
            log_sum: [G] logarithm of the sum of exponentials over all ranks.
        """
        rows, queries, kept = forward.rows, forward.queries, forward.exponentials
        again = Recomputed(self.logits, rows, queries, log_sum, forward.lifts, forward.kernel, self.workspace)
        weights = again if kept is None else Kept(self.logits.arithmetic, forward, kept, log_sum, self.workspace)
        if self.config.filter_eps:
            eps = self.config.filter_eps
            return keep_what_counts(forward, weights, again, log_sum, eps, self.budget, self.workspace)
        if forward.query_gradient is None:
            raise ValueError("a forward pass without training has no gradients")
        return Negatives(rows, weights, forward.query_gradient, (forward.max_logit - log_sum).exp())

    def recycle(self, step: Step) -> None:
        """Take back the buffer of a micro-batch's exponentials."""
        if step.weights.buffer is not None:
            self._put_back(step.weights.buffer)

    def _take(self, rows: int, samples: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor [rows, samples], a view of a flat buffer."""
        buffer = self._spare.pop() if self._spare else None
        if buffer is None or buffer.numel() < rows * samples:
            buffer = torch.empty(rows * samples, dtype=dtype, device=self.device)
        return buffer[: rows * samples].view(rows, samples)

    def _put_back(self, taken: Tensor) -> None:
        if taken._base is not None:  # always: `_take` gives views of flat buffers
            self._spare.append(taken._base)
