"""The targets of a rank: the samples whose classes it owns.

Shapes: T targets, G samples of the global batch, K centers a class, D numbers a center.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TargetPlaces:
    """Where the targets are in the batch, and where their classes are among the chosen, which include them all.

    Attributes:
        samples: [T] indices into the global batch.
        positions: [T] places of their classes among the chosen, ascending.
        host: the positions on the host, where blocks are cut.
    """

    samples: Tensor
    positions: Tensor
    host: NDArray[np.int64]

    def between(self, start: int, stop: int) -> slice:
        """The targets whose class lies in [start, stop) of the chosen."""
        low, high = np.searchsorted(self.host, [start, stop])
        return slice(int(low), int(high))

    def among(self, kept: NDArray[np.int64]) -> "TargetPlaces":
        """The same targets with places counted among `kept`, sorted places that include all targets'."""
        host = np.searchsorted(kept, self.host)
        return TargetPlaces(self.samples, torch.from_numpy(host).to(self.positions.device), host)


@dataclass(frozen=True, slots=True)
class TargetCenters:
    """Of each target's class, the center that is nearest to the sample.

    Attributes:
        unit: [T, D] that center, normalised (raw where the margin does not normalise).
        inverse: [T] the inverse of its norm (1 where not normalised).
        nearest: [T] which of the class's K centers it is.
        cosines: [T] cosine between sample and center (inner product where not normalised).
    """

    unit: Tensor
    inverse: Tensor
    nearest: Tensor
    cosines: Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets' logits, margin included, and the logits' slopes.

    Attributes:
        places: of the targets.
        centers: the targets' nearest.
        logits: [T].
        slopes: [T] d logit / d inner product of query and unit center.
        norm_slopes: [T] d logit / d embedding norm.
    """

    places: TargetPlaces
    centers: TargetCenters
    logits: Tensor
    slopes: Tensor
    norm_slopes: Tensor
