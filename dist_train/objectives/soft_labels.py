"""Soft labels over the classes that are split over ranks (Hinton et al. 2015, "Distilling the Knowledge").

Shapes: G samples of the global batch, n classes of a block, D numbers of the student's embedding, Dt of the teacher's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.head.exchange import HeadGroup
from dist_train.head.logits import inverse_norms
from dist_train.head.margins.table import MARGINS
from dist_train.head.records import ChosenRows
from dist_train.head.sizes import spans
from dist_train.head.step import Exchanged
from dist_train.runtime.to_device import to_device

_LOWEST = -1e30


def check_heads(key: str, student: HeadConfig | None, teacher: HeadConfig) -> None:
    """See that both heads have one cosine for each class.

    Raises:
        UserError: one has not.
    """
    if student is None:
        raise UserError(f"{key}.soft_labels: head is null, and soft labels are over its classes; give it a head")
    for whose, head in (("head", student), ("the teacher's head", teacher)):
        if head.centers_per_class > 1 or not MARGINS[head.margin].normalised:
            raise UserError(
                f"{key}.soft_labels: {whose} has margin {head.margin} and centers_per_class={head.centers_per_class}; "
                "expected one center a class and a margin with cosines"
            )
    if student.filter_eps:
        raise UserError(f"{key}.soft_labels: head.filter_eps drops classes that soft labels need; set it to 0")


class SoftLabels:
    """KL divergence between the teacher's and the student's distribution over the classes of the step, times T².

    L = T² · mean over samples of sum over classes of p · (log p - log q), with p the softmax of s'·cos(teacher's
    embedding, teacher's center)/T and q that of s·cos(embedding, center)/T; s' and s are the scales of both heads.
    Classes are those that the student's head has chosen for the step, of all ranks. There is no margin in either. The
    gradient reaches embeddings and the student's centers, which the head updates with its own.

    Rows are worked on in blocks and twice, so that nothing of the size classes x samples is kept.

    Args:
        student: the head that is trained.
        teacher: a head of the same classes, whose rows stand still.
        temperature: T.
    """

    def __init__(self, student: Head, teacher: Head, temperature: float) -> None:
        self.student, self.teacher, self.temperature = student, teacher, temperature

    def __call__(self, embeddings: Tensor, taught: Tensor) -> Tensor:
        """The value [], equal on all ranks, of this rank's embeddings [B, D] and the teacher's of all [G, Dt]."""
        queries = normalize(embeddings, dim=1) * (self.student.margin.scale / self.temperature)
        hints = normalize(taught, dim=1) * (self.teacher.margin.scale / self.temperature)
        pending = self.student.pending
        if pending is None:
            raise RuntimeError("soft labels need the head's own forward pass in training before them")
        loss: Tensor = _Border.apply(queries, hints, self, pending)
        return loss

    def close(self) -> None:
        """Free the teacher's rows."""
        self.teacher.close()

    def forward(self, queries: Tensor, hints: Tensor, rows: ChosenRows) -> "tuple[Tensor, Tensor, Pass]":
        """The value [], this rank's share of its gradient with respect to all queries [G, D], and the pass."""
        made = Pass(self.teacher, rows, queries, hints, *self._log_sums(queries, hints, rows), self.temperature)
        divergence = queries.new_zeros(len(queries))
        gradient = torch.zeros_like(queries)
        for start, stop in spans(0, rows.lease.count, rows.block):
            block = rows.lease.read("centers", start, stop)
            unit = block * inverse_norms(block)[:, None]
            own, theirs = made.log_shares(unit, start, stop)
            divergence += (theirs.exp() * (theirs - own)).sum(dim=0)
            gradient.addmm_(made.slopes(own, theirs).T, unit)
        value = self.student.ranks.all_reduce(divergence).mean() * self.temperature**2
        return value, gradient, made

    def _log_sums(self, queries: Tensor, hints: Tensor, rows: ChosenRows) -> tuple[Tensor, Tensor]:
        """Logarithms of the sums of exponentials [G] over the classes of all ranks, the student's and the teacher's."""
        top = queries.new_full((2, len(queries)), _LOWEST)
        total = torch.zeros_like(top)
        for logits in _logits(self.teacher, rows, queries, hints):
            higher = torch.maximum(top, torch.stack([each.amax(dim=0) for each in logits]))
            total.mul_((top - higher).exp_())
            total += torch.stack([(each - peak).exp_().sum(dim=0) for each, peak in zip(logits, higher, strict=True)])
            top = higher
        every = self.student.ranks.gather(torch.stack([top, total]).unsqueeze(0))  # [W, 2, 2, G]
        peak = every[:, 0].amax(dim=0)
        own, theirs = peak + (every[:, 1] * (every[:, 0] - peak).exp()).sum(dim=0).log()
        return own, theirs


@dataclass(frozen=True, slots=True)
class Pass:
    """A micro-batch whose sums over all ranks are known: what its gradient with respect to rows is made of.

    Attributes:
        teacher: its rows.
        rows: that the student's head has chosen.
        queries: [G, D] the student's embeddings, in length of scale/T.
        hints: [G, Dt] the teacher's, likewise.
        log_sum: [G] of the student.
        log_sum_taught: [G] of the teacher.
        temperature: T.
    """

    teacher: Head
    rows: ChosenRows
    queries: Tensor
    hints: Tensor
    log_sum: Tensor
    log_sum_taught: Tensor
    temperature: float

    def log_shares(self, unit: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Logarithms of q and p [n, G] of chosen classes [start, stop), whose unit centers [n, D] are `unit`."""
        own = unit @ self.queries.T - self.log_sum
        theirs = _taught_centers(self.teacher, self.rows, start, stop) @ self.hints.T - self.log_sum_taught
        return own, theirs

    def slopes(self, own: Tensor, theirs: Tensor) -> Tensor:
        """The value's derivative by the student's logits [n, G]; 1/T is in the queries, which are scaled by it."""
        return (own.exp() - theirs.exp()) * (self.temperature**2 / len(self.queries))


@dataclass(frozen=True, slots=True)
class RowPart:
    """What soft labels add to the gradient of the head's chosen rows; see `FurtherGradient`.

    Attributes:
        made: the pass.
        scale: [] gradient of the final loss with respect to the value.
    """

    made: Pass
    scale: Tensor

    def add_to(self, out: Tensor, rows: Tensor, start: int, stop: int) -> None:
        """See `FurtherGradient`."""
        inverse = inverse_norms(rows)[:, None]
        slopes = self.made.slopes(*self.made.log_shares(rows * inverse, start, stop))
        out.addmm_(slopes * (inverse * self.scale), self.made.queries)


def _logits(teacher: Head, rows: ChosenRows, queries: Tensor, hints: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The student's and the teacher's logits [n, G], block by block."""
    for start, stop in spans(0, rows.lease.count, rows.block):
        block = rows.lease.read("centers", start, stop)
        unit = block * inverse_norms(block)[:, None]
        yield unit @ queries.T, _taught_centers(teacher, rows, start, stop) @ hints.T


def _taught_centers(teacher: Head, rows: ChosenRows, start: int, stop: int) -> Tensor:
    """The teacher's unit centers [n, Dt] of chosen classes [start, stop)."""
    table = teacher.tables()["centers"]
    if rows.classes is None:
        block = table[start:stop]
    else:
        block = table[to_device(torch.from_numpy(rows.classes[start:stop]), table.device)]
    block = block.to(teacher.device, torch.float32)
    return block * inverse_norms(block)[:, None]


class _Context(torch.autograd.function.FunctionCtx):
    ranks: HeadGroup
    pending: Exchanged
    made: Pass
    gradient: Tensor


class _Border(torch.autograd.Function):
    """Where autograd meets soft labels: local queries [B, D] in, the global mean out; rows are told in passing."""

    @staticmethod
    def forward(ctx: _Context, queries: Tensor, hints: Tensor, labels: SoftLabels, pending: Exchanged) -> Tensor:
        ctx.ranks, ctx.pending = labels.student.ranks, pending
        every = ctx.ranks.gather(queries.detach())
        value, ctx.gradient, ctx.made = labels.forward(every, hints.detach(), pending.rows)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.pending.further.append(RowPart(ctx.made, outer[0]))
        return ctx.ranks.reduce_scatter(ctx.gradient) * outer[0], None, None, None
