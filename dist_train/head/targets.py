"""The targets of a rank: the samples whose classes it owns.

Shapes: T targets, G samples of the global batch, K centers a class, D numbers a center.
"""

import dataclasses
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
        slots: [T] which of its sample's labels each is; None: samples have one.
        labels: L, labels a sample.
    """

    samples: Tensor
    positions: Tensor
    host: NDArray[np.int64]
    slots: Tensor | None = None
    labels: int = 1

    def between(self, start: int, stop: int) -> slice:
        """The targets whose class lies in [start, stop) of the chosen."""
        low, high = np.searchsorted(self.host, [start, stop])
        return slice(int(low), int(high))

    def among(self, kept: NDArray[np.int64]) -> "TargetPlaces":
        """The same targets with places counted among `kept`, sorted places that include all targets'."""
        host = np.searchsorted(kept, self.host)
        return dataclasses.replace(self, positions=torch.from_numpy(host).to(self.positions.device), host=host)

    def by_sample(self, samples: int) -> Tensor:
        """Places [L, samples] int32 of each sample's classes among the chosen; -1 for none on this rank."""
        out = self.positions.new_full((self.labels, samples), -1, dtype=torch.int32)
        slots = torch.zeros_like(self.samples) if self.slots is None else self.slots
        out[slots, self.samples] = self.positions.int()
        return out


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
