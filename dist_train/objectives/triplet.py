"""The triplet loss over the gathered batch, with mining of triplets."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.objectives.config import TripletConfig
from dist_train.objectives.objective import Conditional
from dist_train.objectives.pairs import PairTerm
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.extras import require

_MINED_AT_ONCE = 1 << 22  # distances of positive pairs to negatives, so that no [pairs, n] table grows with the batch

Triplets = tuple[Tensor, Tensor, Tensor]
"""Places [T] of anchors, positives and negatives in the batch."""


class Triplet(PairTerm, Conditional):
    """A negative farther from the anchor than a positive by a margin m, in squared distances d of unit vectors.

        loss = mean over the mined triplets of max(0, d(a, p) - d(a, n) + m),   d = 2 - 2 · cosine

    `semi_hard` (Schroff et al. 2015, section 3.2): each pair (a, p) of an identity with the nearest negative for which
    d(a, n) > d(a, p); where there is none, with the farthest. `batch_hard` (Hermans et al. 2017, equation 5): each
    sample with its farthest positive and its nearest negative. The mean is over all mined triplets, those of loss 0
    included, so that fewer violations mean a smaller gradient; the library's own mean is over the others alone.

    Args:
        section: the term's keys.
        setting: what it is built in.
    """

    def __init__(self, section: TripletConfig, setting: ObjectiveSetting) -> None:
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner
        from pytorch_metric_learning.reducers import DoNothingReducer

        super().__init__("triplet", setting.gathering, setting.ranks.rank == 0)
        # Differences of cosines, which are half those of squared distances.
        self._loss = TripletMarginLoss(section.margin / 2, distance=CosineSimilarity(), reducer=DoNothingReducer())
        self._hard = BatchHardMiner(distance=CosineSimilarity()) if section.mining == "batch_hard" else None

    def value(self, embeddings: Tensor, labels: Tensor, positives: NDArray[np.int64]) -> Tensor:
        """See `PairTerm`; the figure `active` is the share of mined triplets that violate the margin."""
        if (positives == len(positives) - 1).all():  # one identity alone
            triplets = None
        else:
            triplets = self._hard(embeddings, labels) if self._hard else semi_hard_triplets(embeddings, labels)
        if triplets is None or not len(triplets[0]):
            self._figures["active"] = 0.0
            return 0 * embeddings.sum()
        losses = 2 * self._loss(embeddings, labels, triplets)["loss"]["losses"]
        self._figures["active"] = (losses.detach() > 0).float().mean()
        return torch.as_tensor(losses).mean()

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Conditional`; there is nothing to update."""


@torch.no_grad()
def semi_hard_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """Every pair of an identity with the nearest negative beyond it, or the farthest where all are nearer.

    The library's miner lists all triplets, G³ of them, so this one is our own: [pairs, G] at a time in pieces.

    Args:
        embeddings: [G, D] float32 unit vectors.
        labels: [G] int64, at least two of which differ.
    """
    cosines = embeddings @ embeddings.T
    same = labels[:, None] == labels[None, :]
    anchors, positives = torch.where(same.fill_diagonal_(False))
    same.fill_diagonal_(True)
    negatives = torch.empty_like(anchors)
    piece = max(1, _MINED_AT_ONCE // len(labels))
    for start in range(0, len(anchors), piece):
        own = slice(start, start + piece)
        row = cosines[anchors[own]]
        others = ~same[anchors[own]]
        pair = cosines[anchors[own], positives[own]][:, None]
        beyond = torch.where(others & (row < pair), row, -torch.inf)
        nearest, places = beyond.max(dim=1)
        farthest = torch.where(others, row, torch.inf).argmin(dim=1)
        negatives[own] = torch.where(nearest > -torch.inf, places, farthest)
    return anchors, positives, negatives


def build(section: TripletConfig, setting: ObjectiveSetting) -> Triplet:
    """The term that `objectives.triplet` asks for."""
    setting.ranks.agree(lambda: require("metric", "objectives.triplet"))
    return Triplet(section, setting)
