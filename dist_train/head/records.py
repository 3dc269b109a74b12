"""The rows of a pass, and what a pass over them gives.

Shapes: G samples of the global batch, k chosen classes of this rank, K centers a class, D numbers a center.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.margins.base import Lifts
from dist_train.head.storage import Lease
from dist_train.head.targets import TargetPlaces, Targets

if TYPE_CHECKING:
    from dist_train.head.kernel_weights import KernelWeights


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The centers that a pass works on.

    Attributes:
        lease: on the chosen classes.
        classes: local ids of the chosen classes, sorted, on the host; None means all.
        k: K.
        block: classes handled at a time.
        places: this rank's targets among them.
        inverse: [k·K] inverse row norms; None where the margin does not normalise.
    """

    lease: Lease
    classes: NDArray[np.int64] | None
    k: int
    block: int
    places: TargetPlaces
    inverse: Tensor | None

    def inverse_of(self, start: int, stop: int) -> Tensor | None:
        """Inverse norms [n·K] of chosen classes [start, stop)."""
        return None if self.inverse is None else self.inverse[start * self.k : stop * self.k]


@dataclass(frozen=True, slots=True)
class Forward:
    """One rank's pass over its chosen rows, before the other ranks' are known.

    Attributes:
        rows: the chosen rows.
        queries: [G, D] the global batch.
        targets: this rank's.
        apart: samples have several targets, which are not in the sums of exponentials.
        max_logit: [G] largest logit, and at least 0 where targets stand apart.
        exp_sum: [G] sum of exponentials relative to it, the target's included where this rank owns it.
        block_shift: [blocks, G] the logit that each block's exponentials are relative to.
        block_max: [blocks, G] each block's own largest logit.
        exponentials: [k·K, G] of the negatives, times slopes, kept for the step; None: to be formed again.
        query_gradient: [G, D] sum of exponentials · unit center over negatives; None where not formed yet.
        lifts: of the margin for this batch.
        kernel: formed the exponentials, and forms them again; None: torch's operators do.
    """

    rows: ChosenRows
    queries: Tensor
    targets: Targets
    apart: bool
    max_logit: Tensor
    exp_sum: Tensor
    block_shift: Tensor
    block_max: Tensor
    exponentials: Tensor | None
    query_gradient: Tensor | None
    lifts: Lifts | None
    kernel: "KernelWeights | None"
