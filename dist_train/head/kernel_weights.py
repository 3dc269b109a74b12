"""Softmax weights of a block of centers by the kernel, for `softmax` and for the step.

Shapes as in `records`.
"""

import torch
from torch import Tensor

from dist_train.head.kernels.tiles import power_of_two, weights_tiles
from dist_train.head.kernels.weights import weights_kernel
from dist_train.head.logits import Logits
from dist_train.head.margins.base import Lifts
from dist_train.head.targets import TargetPlaces

_LARGEST = 64.5  # logits up to this are exponentiated as they are: 1e9 of them add up to a float32, as does exp(-64.5)


def capability(device: torch.device) -> int:
    """What a device can compute, times 10; that of no device is the least that the kernels are made for."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class KernelWeights:
    """The weights of one batch, formed block by block.

    Args:
        logits: the margin, the threshold, centers a class.
        dtype: of the product's operands and of the weights.
        queries: [G, D].
        places: this rank's targets.
        lifts: of the margin for this batch.
    """

    def __init__(
        self, logits: Logits, dtype: torch.dtype, queries: Tensor, places: TargetPlaces, lifts: Lifts | None
    ) -> None:
        self.logits = logits
        self.dtype = dtype
        self.queries = queries.to(dtype)
        self.lifts = lifts
        self._targets = places.by_sample(len(queries))
        (samples, width), chip = queries.shape, capability(queries.device)
        threshold = logits.threshold is not None
        self._tiles = weights_tiles(logits.k, places.labels, lifts is not None, width, chip, threshold, samples)

    @property
    def fixed(self) -> bool:
        """Whether exponentials need no largest logit: none is so large, nor all so small, as to leave a float32."""
        margin = self.logits.margin
        return margin.normalised and self.lifts is None and margin.scale <= _LARGEST

    def largest(self, rows: Tensor, inverse: Tensor | None, start: int) -> Tensor:
        """Largest logit [G] of the negatives among classes from `start` on, whose centers are `rows` [n·K, D]."""
        return self._launch(rows, inverse, start, self.queries, None).amax(dim=0)

    def form(self, rows: Tensor, inverse: Tensor | None, start: int, relative_to: Tensor, out: Tensor) -> Tensor:
        """Write exponentials times slopes over norms of the negatives into `out`; 0 elsewhere.

        Args:
            rows: [n·K, D] centers in `dtype`.
            inverse: [n·K] their inverse norms; None where the margin does not normalise.
            start: first class, counted among the chosen.
            relative_to: [G] logit that exponentials are relative to.
            out: [n·K, G] in `dtype`.

        Returns:
            [G] sums of the exponentials.
        """
        return self._launch(rows, inverse, start, relative_to, out).sum(dim=0)

    def _launch(
        self, rows: Tensor, inverse: Tensor | None, start: int, relative_to: Tensor, out: Tensor | None
    ) -> Tensor:
        logits, tiles = self.logits, self._tiles
        (samples, width), per_class = self.queries.shape, power_of_two(logits.k)
        classes = len(rows) // logits.k
        tiles_n = -(-classes * per_class // tiles.rows)
        totals = torch.empty((tiles_n, samples), device=rows.device)
        if tiles_n == 0:
            return totals
        lifts, threshold = self.lifts, logits.threshold
        weights_kernel[(tiles_n * -(-samples // tiles.samples),)](
            rows,
            totals if inverse is None else inverse,
            self.queries,
            self._targets,
            totals if lifts is None else lifts.bounds,
            totals if lifts is None else lifts.base,
            relative_to,
            rows if out is None else out,
            totals,
            samples,
            classes,
            width,
            start,
            0.0 if threshold is None else threshold,
            logits.margin.scale,
            K=logits.k,
            KP=per_class,
            LABELS=len(self._targets),
            NORMALISED=inverse is not None,
            LIFTED=lifts is not None,
            THRESHOLD=threshold is not None,
            LARGEST=out is None,
            BLOCK_N=tiles.rows,
            BLOCK_G=tiles.samples,
            BLOCK_D=tiles.numbers,
            GROUP=tiles.group,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
        return totals
