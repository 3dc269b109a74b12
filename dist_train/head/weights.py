"""Softmax weights of the negatives: the low-rank form of the rows' gradient, kept or formed again.

Weights [k·K, G] include the slopes of logits and are over row norms. Weights times queries [G, D] are the gradient of
the chosen centers before its projection; a step multiplies it out block by block, and it never exists as a whole.

Shapes as in `records`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from dist_train.head.arithmetic import Arithmetic
from dist_train.head.logits import Logits
from dist_train.head.margins.base import Lifts
from dist_train.head.records import ChosenRows, Forward
from dist_train.head.sizes import spans
from dist_train.head.workspace import Workspace

if TYPE_CHECKING:
    from dist_train.head.kernel_weights import KernelWeights


class Weights(Protocol):
    """The negatives' weights of a pass that waits for the step."""

    @property
    def kept_bytes(self) -> int:
        """Memory that stays taken until the step."""
        ...

    @property
    def buffer(self) -> Tensor | None:
        """The forward pass's buffer, free after the step; None where it is free already."""
        ...

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Chosen classes [low, high) cut where blocks begin; `times` takes what lies within one block."""
        ...

    def times(self, factor: Tensor, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Weights of chosen classes [start, stop) times queries [G, D] times `factor`, into `out`.

        Args:
            factor: [], or [G] for each sample.
            rows: [n·K, D] centers of these classes.
            start: first class.
            stop: one past the last.
            out: [n·K, D] receives the product.
        """
        ...


class WholeWeights(Weights, Protocol):
    """The weights of all chosen classes and all samples."""

    def block(self, number: int, start: int, stop: int, samples: Tensor | None) -> Tensor:
        """Weights of block `number`, for the filter: of `samples` [a] or all, [n·K, a], not over row norms.

        They may lie in a buffer that the next call writes; `start` and `stop` are the block's classes.
        """
        ...


class Negatives(NamedTuple):
    """The negatives' part of the gradients, once the softmax is exact over all ranks.

    Attributes:
        rows: rows with a weight that counts.
        weights: theirs.
        query_gradient: [G, D] sum of weights · center over negatives, up to `query_scale`.
        query_scale: [G] what the query gradient is still to be multiplied with.
    """

    rows: ChosenRows
    weights: Weights
    query_gradient: Tensor
    query_scale: Tensor


class Kept:
    """Weights as the forward pass left them: exponentials relative to each block's shift.

    Args:
        arithmetic: of the products.
        forward: the pass; its exponentials are over row norms, unless they are to be filtered.
        exponentials: [k·K, G] of the pass.
        log_sum: [G] logarithm of the sum of exponentials over all ranks.
        workspace: holds the scaled queries.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        forward: Forward,
        exponentials: Tensor,
        log_sum: Tensor,
        workspace: Workspace,
    ) -> None:
        self._arithmetic = arithmetic
        self.buffer: Tensor | None = exponentials
        self.kept_bytes = exponentials.nbytes
        self._exponentials = exponentials
        self._rows = forward.rows
        self._queries = forward.queries
        self._shift = forward.block_shift
        self._log_sum = log_sum
        self._workspace = workspace

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """See `Weights`."""
        return spans(low, high, self._rows.block)

    def times(self, factor: Tensor, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """See `Weights`."""
        factors = self._shift[start // self._rows.block].sub(self._log_sum).exp_().mul_(factor)
        k = self._rows.k
        queries = scaled(self._queries, factors, self._workspace)
        self._arithmetic.matmul(self._exponentials[start * k : stop * k], queries, out=out)

    def block(self, number: int, start: int, stop: int, samples: Tensor | None) -> Tensor:
        """See `WholeWeights`."""
        some = self._exponentials[start * self._rows.k : stop * self._rows.k]
        factors = (self._shift[number] - self._log_sum).exp_()
        return some.mul_(factors) if samples is None else some.index_select(1, samples).mul_(factors[samples])


class Recomputed:
    """Weights that are formed a second time from the centers, since memory for them was lacking.

    Args:
        logits: forms them.
        rows: the chosen rows.
        queries: [G, D] the global batch.
        log_sum: [G] logarithm of the sum of exponentials over all ranks.
        lifts: of the margin for this batch, which is no longer its last when micro-batches follow.
        kernel: forms them; None: torch's operators do.
        workspace: holds a block of weights, and the scaled queries.
    """

    def __init__(
        self,
        logits: Logits,
        rows: ChosenRows,
        queries: Tensor,
        log_sum: Tensor,
        lifts: Lifts | None,
        kernel: "KernelWeights | None",
        workspace: Workspace,
    ) -> None:
        self.buffer: Tensor | None = None
        self.kept_bytes = 0
        self._logits = logits
        self._rows = rows
        self._queries = queries
        self._log_sum = log_sum
        self._lifts = lifts
        self._kernel = kernel
        self._workspace = workspace

    @property
    def arithmetic(self) -> Arithmetic:
        """Of the products."""
        return self._logits.arithmetic

    def narrowed(self, rows: ChosenRows) -> "Recomputed":
        """The weights of some of the chosen rows."""
        return Recomputed(self._logits, rows, self._queries, self._log_sum, self._lifts, self._kernel, self._workspace)

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """See `Weights`."""
        return spans(low, high, self._rows.block)

    def times(self, factor: Tensor, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """See `Weights`."""
        inverse = self._rows.inverse_of(start, stop)
        if self._kernel is not None:
            weights = self._workspace.get("again", (len(rows), len(self._queries)), self._kernel.dtype)
            self._kernel.form(rows.to(self._kernel.dtype), inverse, start, self._log_sum, weights)
        else:
            weights = self._form(rows, start, stop)
            if inverse is not None:
                weights.mul_(inverse[:, None])
        factors = factor.expand(len(self._queries))
        self._logits.arithmetic.matmul(weights, scaled(self._queries, factors, self._workspace), out=out)

    def block(self, number: int, start: int, stop: int, samples: Tensor | None) -> Tensor:
        """See `WholeWeights`."""
        rows = self._rows.lease.read("centers", start, stop).view(-1, self._queries.shape[1])
        weights = self._form(rows, start, stop)
        return weights if samples is None else weights.index_select(1, samples)

    def _form(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Weights [n·K, G] of chosen classes [start, stop) from their centers `rows`, not over row norms."""
        out = self._workspace.get("again", (len(rows), len(self._queries)))
        inverse = self._rows.inverse_of(start, stop)
        slope = self._logits.of_negatives(rows, inverse, self._rows.places, start, self._queries, self._lifts, out)
        out.sub_(self._log_sum).exp_()
        return out if slope is None else out.mul_(slope)


def scaled(queries: Tensor, factors: Tensor, workspace: Workspace) -> Tensor:
    """Queries [G, D] times factors [G], in the workspace."""
    return torch.mul(queries, factors[:, None], out=workspace.get("scaled", tuple(queries.shape)))
