"""A micro-batch between its forward pass and the optimizer's step.

Shapes as in `records`; T targets.
"""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dist_train.head.records import ChosenRows
from dist_train.head.weights import Weights


class FurtherGradient(Protocol):
    """What another term of the loss adds to the gradient of the rows that the head has chosen for a micro-batch."""

    def add_to(self, out: Tensor, rows: Tensor, start: int, stop: int, /) -> None:
        """Add to the gradient `out` [n·K, D] of `rows` [n·K, D], as `Step.row_gradient` gives it."""


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A pass whose loss is exact over all ranks, until autograd comes back with the loss's gradient.

    Attributes:
        rows: the rows to update.
        weights: the negatives' weights on them.
        queries: [G, D] the global batch.
        shares: [G] what each sample's loss is multiplied by; None: 1 / G.
        nearest: [T] which of its class's K centers each target is compared with.
        target_gradient: [T] d mean loss / d inner product of query and that center.
        gradient: [G, D + 1] this rank's share of d mean loss / d (queries, embedding norms).
        further: of other terms over the same rows.
    """

    rows: ChosenRows
    weights: Weights
    queries: Tensor
    shares: Tensor | None
    nearest: Tensor
    target_gradient: Tensor
    gradient: Tensor
    further: list[FurtherGradient] = field(default_factory=list)

    def step(self, loss_scale: Tensor) -> "Step":
        """What waits for the optimizer, with the gradient [] of the final loss with respect to the mean."""
        rows, weights, queries, shares = self.rows, self.weights, self.queries, self.shares
        return Step(rows, weights, queries, shares, self.nearest, self.target_gradient, loss_scale, self.further)


@dataclass(frozen=True, slots=True)
class Step:
    """A micro-batch whose backward pass is over and whose rows wait for their update.

    Attributes:
        rows: the rows to update.
        weights: the negatives' weights on them.
        queries: [G, D] the global batch.
        shares: [G] what each sample's loss is multiplied by; None: 1 / G.
        nearest: [T] which of its class's K centers each target is compared with.
        target_gradient: [T] d mean loss / d inner product of query and that center.
        loss_scale: [] gradient of the final loss with respect to the mean over samples.
        further: of other terms over the same rows.
    """

    rows: ChosenRows
    weights: Weights
    queries: Tensor
    shares: Tensor | None
    nearest: Tensor
    target_gradient: Tensor
    loss_scale: Tensor
    further: list[FurtherGradient]

    def row_gradient(self, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Gradient of chosen rows before its projection: sum over samples of d loss / d product · query.

        Args:
            rows: [n·K, D] centers of chosen classes [start, stop), which lie within one block of the weights.
            start: first class.
            stop: one past the last.
            out: [n·K, D] receives the gradient.
        """
        factor = self.loss_scale / len(self.queries) if self.shares is None else self.loss_scale * self.shares
        self.weights.times(factor, rows, start, stop, out)
        places, k = self.rows.places, self.rows.k
        here = places.between(start, stop)
        if here.stop > here.start:
            pulls = self.target_gradient[here] * self.loss_scale
            targets = (places.positions[here] - start) * k + self.nearest[here]
            out.index_add_(0, targets, self.queries[places.samples[here]] * pulls[:, None])
        for term in self.further:
            term.add_to(out, rows, start, stop)
