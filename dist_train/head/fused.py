"""The margin-softmax over chosen classes by kernels that keep logits on the chip.

The forward pass makes the largest logit, the sum of exponentials and this rank's share of d loss / d queries; the step
forms the weights again, tile by tile, for the rows' gradient. What `softmax` does in torch's own operators.

Shapes as in `records`; `kernels.products` has those of the padded copies.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.kernels import products
from dist_train.head.kernels.tiles import FORWARD, GRADIENT, multiprocessors, padded, power_of_two
from dist_train.head.logits import Logits, inverse_norms
from dist_train.head.records import ChosenRows, Forward
from dist_train.head.sizes import spans
from dist_train.head.storage import Lease
from dist_train.head.targets import TargetPlaces, Targets
from dist_train.head.weights import Negatives
from dist_train.head.workspace import Workspace

LOWEST = -1e30  # stands for minus infinity where a difference of two must not be NaN
_LARGEST = 64.5  # logits up to this are exponentiated as they are: a sum of 1e9 of them is a float32, as is exp(-64.5)


class Operands(NamedTuple):
    """The samples' side of the products.

    Attributes:
        queries: [Gp, DP] in the arithmetic's type, padded with zeros.
        targets: [L, Gp] int32, classes of the samples' targets among the chosen; -1 for none.
        bounds: [Gp] scaled cosines beyond which a negative is hard; not read where the margin lifts none.
        lift: [] base of the lifts; not read likewise.
    """

    queries: Tensor
    targets: Tensor
    bounds: Tensor
    lift: Tensor


class FusedSoftmax:
    """The forward pass by kernels, and the weights for the step.

    Args:
        logits: the margin, the threshold, centers a class.
        dtype: of the products' operands.
        block: classes handled at a time; what is held of them is a copy in `dtype` and their gradient.
        workspace: holds the copies.
    """

    def __init__(self, logits: Logits, dtype: torch.dtype, block: int, workspace: Workspace) -> None:
        self.logits = logits
        self.dtype = dtype
        self.block = block
        self.workspace = workspace

    def forward(
        self,
        lease: Lease,
        classes: NDArray[np.int64] | None,
        queries: Tensor,
        targets: Targets,
        apart: bool,
        training: bool,
    ) -> Forward:
        """As `BlockSoftmax.forward`; nothing of the logits is kept."""
        samples, width = queries.shape
        k, places, margin = self.logits.k, targets.places, self.logits.margin
        tiles, device = FORWARD, queries.device
        operands = self.operands(queries, places)
        many = len(operands.queries)
        tops, sums = self._start(targets, apart, samples, many)
        # Enough programs for all multiprocessors: where samples are few, the rows of a block are split.
        splits = max(1, multiprocessors(device) // (many // tiles.samples))
        tops = torch.cat([tops[None], tops.new_full((splits - 1, many), LOWEST if self.online else 0.0)])
        sums = torch.cat([sums[None], sums.new_zeros((splits - 1, many))])
        dim = operands.queries.shape[1]
        gradients = queries.new_zeros((splits, many, dim) if training else (1,))
        inverse = queries.new_empty(lease.count * k) if margin.normalised else None
        for start, stop in spans(0, lease.count, self.block):
            rows = lease.read("centers", start, stop).view(-1, width)
            units, biases = self.units(rows, None if inverse is None else inverse[start * k : stop * k])
            count = (stop - start) * power_of_two(k)
            each = padded(-(-count // splits), tiles.rows)
            products.forward_kernel[many // tiles.samples, splits](
                operands.queries,
                units,
                biases,
                operands.targets,
                operands.bounds,
                operands.lift,
                tops,
                sums,
                gradients,
                many,
                count,
                each,
                start,
                *self._limits(),
                DP=dim,
                **self._flags(len(operands.targets)),
                ONLINE=self.online,
                GRADIENT=training,
                BLOCK_G=tiles.samples,
                BLOCK_N=tiles.rows,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
        top = tops.amax(dim=0)
        fades = (tops - top).exp_()
        gradient = None
        if training:
            gradient = torch.zeros_like(queries)
            real = gradient[:, : min(dim, width)]
            torch.sum(gradients.mul_(fades[:, :, None])[:, :samples, : real.shape[1]], dim=0, out=real)
        exp_sum = sums.mul_(fades).sum(dim=0)
        chosen = ChosenRows(lease, classes, k, self.block, places, inverse)
        none = queries.new_empty(0)
        return Forward(chosen, queries, targets, apart, top[:samples], exp_sum[:samples], none, none, None, gradient)

    def negatives(self, forward: Forward, log_sum: Tensor) -> Negatives:
        """As `BlockSoftmax.negatives`."""
        if forward.query_gradient is None:
            raise ValueError("a forward pass without training has no gradients")
        weights = FusedWeights(self, forward.rows, forward.queries, log_sum)
        return Negatives(forward.rows, weights, forward.query_gradient, (forward.max_logit - log_sum).exp())

    @property
    def online(self) -> bool:
        """Whether logits may be so large or so small that exponentials need a running maximum."""
        margin = self.logits.margin
        return not margin.normalised or margin.lifts() is not None or margin.scale > _LARGEST

    def operands(self, queries: Tensor, places: TargetPlaces) -> Operands:
        """The samples' side, padded."""
        samples, width = queries.shape
        margin = self.logits.margin
        many = padded(samples, max(FORWARD.samples, GRADIENT.samples))
        numbers = width if margin.normalised else width - 1  # the last number is the bias's constant 1
        copy = torch.zeros((many, max(16, power_of_two(numbers))), dtype=self.dtype, device=queries.device)
        copy[:samples, :numbers] = queries[:, :numbers]
        lifts = margin.lifts()
        if lifts is None:
            return Operands(copy, places.by_sample(many), copy, copy)
        bounds = torch.nn.functional.pad(lifts.bounds, (0, many - samples))
        return Operands(copy, places.by_sample(many), bounds, lifts.base)

    def units(self, rows: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit rows [n·KP padded, DP] and biases [n·KP padded] of centers [n·K, D], whose `inverse` norms are set."""
        k, width = self.logits.k, rows.shape[1]
        count, numbers = len(rows) // k, width if inverse is not None else width - 1
        per_class, dim = power_of_two(k), max(16, power_of_two(numbers))
        many = padded(count * per_class, max(FORWARD.rows, GRADIENT.rows))
        units = self.workspace.get("units", (many, dim), self.dtype)
        if dim > numbers or per_class > k:
            units.zero_()
        units[count * per_class :].zero_()
        inner = units[: count * per_class].view(count, per_class, dim)[:, :k, :numbers]
        rows = rows.view(count, k, width)
        if inverse is not None:
            inverse_norms(rows.view(-1, width), out=inverse)
            torch.mul(rows, inverse.view(count, k, 1), out=inner)
            return units, inverse
        inner.copy_(rows[:, :, :numbers])
        biases = self.workspace.get("biases", (many,)).zero_()
        biases[: count * per_class].view(count, per_class)[:, :k] = rows[:, :, -1]
        return units, biases

    def _limits(self) -> tuple[float, float]:
        threshold = self.logits.threshold
        return 0.0 if threshold is None else threshold, self.logits.margin.scale

    def _flags(self, labels: int) -> dict[str, int | bool]:
        logits = self.logits
        return {
            "K": logits.k,
            "KP": power_of_two(logits.k),
            "LABELS": labels,
            "BIAS": not logits.margin.normalised,
            "LIFTED": logits.margin.lifts() is not None,
            "THRESHOLD": logits.threshold is not None,
        }

    def _start(self, targets: Targets, apart: bool, samples: int, many: int) -> tuple[Tensor, Tensor]:
        """Largest logit and sum of exponentials [Gp] before the first negative."""
        fixed = not self.online
        tops = targets.logits.new_full((many,), 0.0 if apart or fixed else LOWEST)
        sums = torch.zeros_like(tops)
        if not apart:
            places = targets.places.samples
            if not fixed:
                tops[places] = targets.logits
            sums[places] = (targets.logits - tops[places]).exp()
        return tops, sums

    def row_gradient(
        self, operands: Operands, rows: Tensor, start: int, log_sums: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        """Weights of the classes from `start` on times queries, into `out` [n·K, D]; their centers are `rows`."""
        tiles, k = GRADIENT, self.logits.k
        inverse = rows.new_empty(len(rows)) if self.logits.margin.normalised else None
        units, biases = self.units(rows, inverse)
        count = len(rows) // k * power_of_two(k)
        products.row_gradient_kernel[(padded(count, tiles.rows) // tiles.rows,)](
            units,
            biases,
            biases if inverse is None else inverse,
            operands.queries,
            operands.targets,
            operands.bounds,
            operands.lift,
            log_sums,
            factors,
            out,
            rows.shape[1],
            len(operands.queries),
            count,
            start,
            *self._limits(),
            DP=operands.queries.shape[1],
            **self._flags(len(operands.targets)),
            BLOCK_G=tiles.samples,
            BLOCK_N=tiles.rows,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )


class FusedWeights:
    """Weights that exist in tiles only; see `Weights`.

    Args:
        softmax: forms them.
        rows: the chosen rows.
        queries: [G, D] the global batch.
        log_sum: [G] logarithm of the sum of exponentials over all ranks.
    """

    def __init__(self, softmax: FusedSoftmax, rows: ChosenRows, queries: Tensor, log_sum: Tensor) -> None:
        self.buffer: Tensor | None = None
        self.kept_bytes = 0
        self._softmax = softmax
        self._rows = rows
        self._operands = softmax.operands(queries, rows.places)
        many = len(self._operands.queries)
        self._log_sums = torch.nn.functional.pad(log_sum, (0, many - len(queries)), value=torch.inf)
        self._samples = len(queries)

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """See `Weights`."""
        return spans(low, high, self._rows.block)

    def times(self, factor: Tensor, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """See `Weights`."""
        factors = self._log_sums.new_zeros(len(self._log_sums))
        factors[: self._samples] = factor
        self._softmax.row_gradient(self._operands, rows, start, self._log_sums, factors, out)
