"""The mean loss over all ranks' samples and classes, and its place in autograd.

The steps are numbered as in `docs/architecture.md`; the fifth, the update of rows, is in `update`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.errors import NonFiniteError
from dist_train.head.exchange import HeadGroup
from dist_train.head.margins.base import Margin
from dist_train.head.records import Forward
from dist_train.head.sampling import ClassSampler, Indices
from dist_train.head.shares import Shares
from dist_train.head.softmax import BlockSoftmax
from dist_train.head.statistics import Statistics, exchange_statistics
from dist_train.head.step import Exchanged, Step
from dist_train.head.storage import Lease, RowStore
from dist_train.head.targets import TargetPlaces
from dist_train.runtime.to_device import to_device
from dist_train.runtime.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Observed:
    """What a forward pass saw.

    Attributes:
        cosines: [n] target cosines of the samples of the global batch that count (inner products where the margin
            does not normalise).
        losses: [G] of the global batch's samples, without a penalty; 0 where a sample does not count.
        chosen: share of this rank's classes that were in the softmax.
        updated: share that the filter left, which the step updates.
    """

    cosines: Tensor
    losses: Tensor
    chosen: float
    updated: float


class _Choice(NamedTuple):
    """A step's rows.

    Attributes:
        lease: on the chosen rows.
        classes: local ids of the chosen classes, sorted, on the host; None means all.
        places: this rank's targets.
        target_classes: [T] their classes, counted from this rank's first.
    """

    lease: Lease
    classes: NDArray[np.int64] | None
    places: TargetPlaces
    target_classes: Tensor


class ShardedLoss:
    """One rank's part in the loss of a global batch.

    Args:
        margin: the loss.
        softmax: works over this rank's chosen rows.
        store: holds the rows.
        sampler: chooses the rows of a step.
        ranks: the exchanges.
        num_classes: C over all ranks.
        start: this rank's first class.
        verdict: on the embeddings.

    Attributes:
        micro_batches: whose backward pass is over and whose rows wait for the step.
        observed: of the last forward pass; None before the first.
        pending: the last forward pass of training until its backward pass, for terms over the same rows; else None.
        margin_moves: whether the margin's moving averages follow what training sees.
    """

    def __init__(
        self,
        margin: Margin,
        softmax: BlockSoftmax,
        store: RowStore,
        sampler: ClassSampler,
        ranks: HeadGroup,
        num_classes: int,
        start: int,
        verdict: Verdict,
    ) -> None:
        self.margin = margin
        self.softmax = softmax
        self.store = store
        self.sampler = sampler
        self.ranks = ranks
        self.num_classes = num_classes
        self.start = start
        self.stop = start + store.num_classes
        self.verdict = verdict
        self.micro_batches: list[Step] = []
        self.observed: Observed | None = None
        self.pending: Exchanged | None = None
        self.margin_moves = True

    def __call__(self, queries: Tensor, norms: Tensor, labels: Indices, shares: Shares | None) -> Tensor:
        """Mean loss [] of all ranks' queries [B, D], with raw embeddings' norms [B] and all ranks' labels.

        Labels are [G], or [G, L] where samples have several.

        With `shares` it is the sum of the samples' losses times their weights.
        """
        loss: Tensor = _Border.apply(queries, norms, labels, shares, self)
        return loss

    def forward(
        self, queries: Tensor, norms: Tensor, labels: Indices, shares: Shares | None, training: bool
    ) -> tuple[Tensor, Exchanged | None]:
        """The mean loss [], and in training what the backward pass and the step need.

        The order of steps is the order of collectives, equal on all ranks; the margin sees the batch before it forms
        the first logit, and rows are filtered before gradients are formed.
        """
        batch = len(queries)
        queries, norms = self._gather(queries, norms)
        choice = self._choose(labels, training)
        passed = self._pass_over_rows(choice, queries, norms, shares, labels.ndim == 2, training)
        statistics = exchange_statistics(passed, self.ranks)  # step 3, over ranks
        losses, cosines = statistics.losses, statistics.cosines
        if shares is None:
            loss = losses.mean()
        else:
            losses = losses.masked_fill(shares.ignored, 0)  # without a target it may be infinite
            loss, cosines = (losses * shares.weights).sum(), cosines[shares.counted]
            # Each softmax weight is an exponential relative to this: none is left of a sample that does not count.
            statistics = replace(statistics, log_sum=statistics.log_sum.masked_fill(shares.ignored, torch.inf))
        exchanged = self._exchanged(passed, statistics, norms, shares) if training else None
        if exchanged is None:
            choice.lease.release()
        self.pending = exchanged
        left = choice.lease if exchanged is None else exchanged.rows.lease
        owned = max(1, self.store.num_classes)
        self.observed = Observed(cosines, losses, choice.lease.count / owned, left.count / owned)
        penalty, slopes = self._penalty(norms, shares)
        if penalty is not None:
            loss = loss + penalty
            if exchanged is not None:  # every rank knows the whole penalty: each adds its own samples' slopes, once
                own = slice(self.ranks.rank * batch, (self.ranks.rank + 1) * batch)
                exchanged.gradient[own, -1] += slopes[own]
        return loss, exchanged

    def backward(self, exchanged: Exchanged, loss_gradient: Tensor) -> Tensor:
        """Step 4: reduce-scatter the gradient of the global batch.

        Args:
            exchanged: of the forward pass, which from now on waits for the step.
            loss_gradient: [] gradient of the final loss with respect to the mean.

        Returns:
            [B, D + 1] gradient of this rank's queries and norms.
        """
        self.pending = None
        self.micro_batches.append(exchanged.step(loss_gradient.float()))
        return self.ranks.reduce_scatter(exchanged.gradient) * loss_gradient

    def _near(self, values: Indices) -> Tensor:
        return to_device(torch.from_numpy(values), self.store.device)

    def _gather(self, queries: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Step 1: all ranks' queries [G, D] and norms [G], checked."""
        every = self.ranks.gather(torch.cat([queries, norms[:, None]], dim=1))
        queries, norms = every[:, :-1].contiguous(), every[:, -1].contiguous()
        # A norm is finite exactly if its embedding and square are.
        self.verdict.check(norms.isfinite(), self._refusal)
        return queries, norms

    def _refusal(self, finite: NDArray[np.bool_]) -> NonFiniteError:
        lost, per_rank = np.flatnonzero(~finite), len(finite) // self.ranks.world_size
        return NonFiniteError(
            f"rank {lost[0] // per_rank}: embedding {lost[0] % per_rank} of the batch is not finite "
            f"({len(lost)} of {len(finite)} over all ranks); the step is refused, no center was changed; "
            "lower the learning rate or look at that input"
        )

    def _choose(self, labels: Indices, training: bool) -> _Choice:
        """Step 2: the classes of all ranks' labels and sampled others; all classes where it is no training."""
        mine = np.flatnonzero((labels >= self.start) & (labels < self.stop))
        local = labels.ravel()[mine] - self.start
        each = labels.size // len(labels)
        mine, slots = np.divmod(mine, each)  # from places among the labels to samples
        if training:
            classes, lease = self.sampler.choose(labels, np.unique(local))
        else:
            classes, lease = None, self.store.lease(None)
        positions = local if classes is None else np.searchsorted(classes, local)
        order = np.argsort(positions, kind="stable")
        slot = None if each == 1 else self._near(slots[order])
        places = TargetPlaces(self._near(mine[order]), self._near(positions[order]), positions[order], slot, each)
        return _Choice(lease, classes, places, self._near(local[order]))

    def _pass_over_rows(
        self, choice: _Choice, queries: Tensor, norms: Tensor, shares: Shares | None, apart: bool, training: bool
    ) -> Forward:
        """Step 3, on this rank: logits of the targets, then the negatives' block by block; targets `apart` or among."""
        softmax, places = self.softmax, choice.places
        centers = softmax.logits.nearest_centers(choice.lease, places, queries)
        cosines = self._all_target_cosines(places, centers.cosines, len(queries))
        moves = training and self.margin_moves and (shares is None or shares.some)
        self.margin.observe(norms, cosines, moves, None if shares is None else shares.counted)
        targets = softmax.logits.of_targets(places, centers, norms, choice.target_classes)
        kept = sum(step.weights.kept_bytes for step in self.micro_batches)
        return softmax.forward(choice.lease, choice.classes, queries, targets, kept, apart, training)

    def _all_target_cosines(self, places: TargetPlaces, own: Tensor, samples: int) -> Tensor | None:
        """Target cosines [G] of all ranks from this rank's [T], for a margin that asks for them."""
        if not self.margin.needs_target_cosines:
            return None
        cosines = own.new_zeros(samples)
        cosines[places.samples] = own
        return self.ranks.all_reduce(cosines)

    def _exchanged(self, passed: Forward, statistics: Statistics, norms: Tensor, shares: Shares | None) -> Exchanged:
        """Step 4, on this rank: its share of the gradient of all samples."""
        targets, samples = passed.targets, len(norms)
        negatives = self.softmax.negatives(passed, statistics.log_sum)
        places, centers = negatives.rows.places, targets.centers
        outer = statistics.target_slopes(targets)
        weights = None if shares is None else shares.weights
        outer = outer / samples if weights is None else outer * weights[places.samples]  # d loss / d target logit
        gradient = torch.cat([negatives.query_gradient, norms.new_zeros((samples, 1))], dim=1)
        scale = negatives.query_scale / samples if weights is None else negatives.query_scale * weights
        gradient.mul_(scale[:, None])
        direct = torch.cat([centers.unit * targets.slopes[:, None], targets.norm_slopes[:, None]], dim=1)
        gradient.index_add_(0, places.samples, direct * outer[:, None])
        target_gradient = outer * targets.slopes * centers.inverse
        return Exchanged(
            negatives.rows, negatives.weights, passed.queries, weights, centers.nearest, target_gradient, gradient
        )

    def _penalty(self, norms: Tensor, shares: Shares | None) -> tuple[Tensor | None, Tensor]:
        with torch.enable_grad():
            norms = norms.requires_grad_()
            penalty = self.margin.penalty(norms, None if shares is None else shares.weights)
            if penalty is None:
                return None, norms
            return penalty.detach(), torch.autograd.grad(penalty, norms)[0]


class _Context(torch.autograd.function.FunctionCtx):
    sharded: ShardedLoss
    exchanged: Exchanged | None
    needs_input_grad: tuple[bool, ...]


class _Border(torch.autograd.Function):
    """Where autograd meets the head: local queries [B, D] and norms [B] in, the global mean loss out."""

    @staticmethod
    def forward(
        ctx: _Context, queries: Tensor, norms: Tensor, labels: Indices, shares: Shares | None, sharded: ShardedLoss
    ) -> Tensor:
        training = any(ctx.needs_input_grad)
        loss, ctx.exchanged = sharded.forward(queries.detach(), norms.detach(), labels, shares, training)
        ctx.sharded = sharded
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, *outer: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.exchanged is None:
            raise RuntimeError("autograd asks for the gradient of a loss that needs none")
        local = ctx.sharded.backward(ctx.exchanged, outer[0])
        return local[:, :-1], local[:, -1], None, None, None
