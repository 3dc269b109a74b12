"""The supervised contrastive loss over the gathered batch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.objectives.config import SupConConfig
from dist_train.objectives.objective import Conditional
from dist_train.objectives.pairs import PairTerm
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.extras import require


class SupCon(PairTerm, Conditional):
    """Khosla et al. 2020, equation 2: every other picture of the identity is to win a softmax over the batch.

    With cosines c, temperature t and the positives P(i) of sample i, by `pytorch_metric_learning.losses.SupConLoss`:

        loss(i) = - mean over p in P(i) of log( exp(c(i, p) / t) / sum over a != i of exp(c(i, a) / t) )

    The value is the mean over all samples with a positive; in the library it is over those whose loss is not 0.

    Args:
        section: the term's keys.
        setting: what it is built in.
    """

    def __init__(self, section: SupConConfig, setting: ObjectiveSetting) -> None:
        from pytorch_metric_learning.losses import SupConLoss
        from pytorch_metric_learning.reducers import DoNothingReducer

        super().__init__("supcon", setting.gathering, setting.ranks.rank == 0)
        self._loss = SupConLoss(temperature=section.temperature, reducer=DoNothingReducer())

    def value(self, embeddings: Tensor, labels: Tensor, positives: NDArray[np.int64]) -> Tensor:
        """See `PairTerm`."""
        anchors = int(np.count_nonzero(positives))
        if anchors == len(positives) and (positives == anchors - 1).all():
            return 0 * embeddings.sum()  # one identity alone, without anything to tell it from
        losses = self._loss(embeddings, labels)["loss"]["losses"]
        return torch.as_tensor(losses).sum() / anchors

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Conditional`; there is nothing to update."""


def build(section: SupConConfig, setting: ObjectiveSetting) -> SupCon:
    """The term that `objectives.supcon` asks for."""
    setting.ranks.agree(lambda: require("metric", "objectives.supcon"))
    return SupCon(section, setting)
