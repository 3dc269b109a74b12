"""What the parts of a step hand to each other.

Shapes: G samples of the global batch, k chosen classes of this rank, K centers a class, D numbers a center, T targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.filtering import FilteredBlock
from dist_train.head.storage import Lease


@dataclass
class Targets:
    """The samples whose classes this rank owns; it always chooses its positives.

    Attributes:
        samples: [T] indices into the global batch.
        positions: [T] places of their classes among the chosen, ascending.
        places: the same on the host, where blocks are cut.
        unit: [T, D] the target's nearest center, normalised (raw where the margin does not normalise).
        inverse: [T] the inverse of that center's norm (1 where not normalised).
        nearest: [T] which of the class's K centers it is.
        cosines: [T] cosine between sample and that center.
        logits: [T] with the margin.
        slopes: [T] d logit / d inner product of query and unit center.
        norm_slopes: [T] d logit / d embedding norm.
        pull: [T] d loss / d inner product of query and unit center.
    """

    samples: Tensor
    positions: Tensor
    places: NDArray[np.int64]
    unit: Tensor = field(init=False)
    inverse: Tensor = field(init=False)
    nearest: Tensor = field(init=False)
    cosines: Tensor = field(init=False)
    logits: Tensor = field(init=False)
    slopes: Tensor = field(init=False)
    norm_slopes: Tensor = field(init=False)
    pull: Tensor = field(init=False)

    def between(self, start: int, stop: int) -> slice:
        """Those whose class lies in [start, stop) of the chosen."""
        low, high = np.searchsorted(self.places, [start, stop])
        return slice(int(low), int(high))

    def move_to(self, kept: NDArray[np.int64]) -> None:
        """Count places among `kept`, sorted places that include all targets'."""
        self.places = np.searchsorted(kept, self.places)
        self.positions = torch.from_numpy(self.places).to(self.positions.device)


@dataclass
class Pass:
    """What one rank's pass over its chosen rows gives.

    Attributes:
        lease: on the chosen classes.
        classes: them, sorted local ids on the host; None: all.
        block: classes a block.
        queries: [G, D] the global batch.
        targets: this rank's.
        top: [G] largest logit.
        total: [G] sum of exponentials relative to it, the target's included where this rank owns it.
        inverse: [k·K] inverse row norms; None where not normalised.
        shifts: [blocks, G] the maximum that each block's exponentials are relative to.
        peaks: [blocks, G] each block's own largest logit, for filtering.
        weights: [k·K, G] exponentials (over row norms) kept from the forward; None: to be formed again.
        pull: [G, D] sum of exponentials · slope · unit center over negatives; None where not formed yet.
        log_sum: [G] logarithm of the sum of exponentials over all ranks, set once they are exchanged.
        scale: [] gradient of the final loss with respect to the mean over samples, set by the backward.
        filtered: after filtering, each block's weights; None for a block where they are to be formed again.
        cuts: after filtering, where among the classes kept each of these blocks begins; the last one is their number.
    """

    lease: Lease
    classes: NDArray[np.int64] | None
    block: int
    queries: Tensor
    targets: Targets
    top: Tensor
    total: Tensor
    inverse: Tensor | None
    shifts: Tensor
    peaks: Tensor
    weights: Tensor | None
    pull: Tensor | None
    log_sum: Tensor = field(init=False)
    scale: Tensor = field(init=False)
    filtered: list[FilteredBlock | None] = field(default_factory=list)
    cuts: NDArray[np.int64] | None = None

    @property
    def kept_bytes(self) -> int:
        """Memory of the weights that wait for the step."""
        whole = 0 if self.weights is None else self.weights.nbytes
        return whole + sum(
            block.weights.nbytes for block in self.filtered if block is not None and block.samples is not None
        )

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Chosen classes [low, high) cut where blocks begin."""
        if self.cuts is None:
            yield from spans(low, high, self.block)
            return
        inner = self.cuts[(self.cuts > low) & (self.cuts < high)].tolist()
        yield from zip([low, *inner], [*inner, high], strict=True)

    def filtered_at(self, start: int) -> tuple[FilteredBlock | None, int]:
        """The filtered weights of the block that holds chosen class `start`, and the block's first class."""
        if self.cuts is None:
            return None, 0
        number = int(np.searchsorted(self.cuts, start, side="right")) - 1
        return self.filtered[number], int(self.cuts[number])


def spans(low: int, high: int, block: int) -> Iterator[tuple[int, int]]:
    """[low, high) cut at multiples of `block`."""
    while low < high:
        cut = min((low // block + 1) * block, high)
        yield low, cut
        low = cut
