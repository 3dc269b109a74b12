"""Agreement of two views: what a sample's embeddings lose when they differ, without any label."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError, UserError
from dist_train.head.exchange import HeadGroup
from dist_train.objectives.config import ConsistencyConfig
from dist_train.objectives.objective import Conditional, OfTwoViews
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.to_device import to_device


class Consistency(OfTwoViews, Conditional):
    """Mean of 1 - cos(a, b), a and b the embeddings of two views of a sample; gradients pass through both.

    The mean is over the samples concerned in the global micro-batch; where there is none the term is 0. What keeps the
    embeddings apart is another term of the loss.

    Source: Xie et al. 2020, "Unsupervised data augmentation for consistency training", with cosines of embeddings in
    place of a divergence of class probabilities.

    Args:
        setting: what it is built in.
        concerned: [sets] bool, whose samples take part.
    """

    def __init__(self, setting: ObjectiveSetting, concerned: list[bool]) -> None:
        ranks = setting.ranks
        self._gathering = setting.gathering
        self._near = HeadGroup(ranks.group, ranks.rank, ranks.world_size)
        self._concerned = np.array(concerned)
        self._value = torch.zeros(())

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._gathering.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """See `Objective`; `embeddings` are [2·B, D], those of the second view behind those of the first."""
        first, second = embeddings.float().chunk(2)
        _, sources = self._gathering.prepare(batch)
        count = int(self._concerned[sources].sum())
        part = torch.from_numpy(self._concerned[batch.source.numpy()] / max(1, count)).to(first.dtype)
        part = to_device(part, first.device)
        own = (part * (1 - functional.cosine_similarity(first, second, dim=1))).sum()
        total = self._near.all_reduce(own.detach().clone())
        self._gathering.verdict.check(total.isfinite(), _refusal)
        self._value = total
        return own + (total - own.detach())

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Objective`; there is nothing to update."""

    def zero_grad(self) -> None:
        """See `Objective`."""

    def statistics(self) -> dict[str, float]:
        """See `Objective`: `loss`, the mean of 1 - cosine."""
        return {"loss": float(self._value)}

    def close(self) -> None:
        """See `Objective`."""


def _refusal(_: object) -> NonFiniteError:
    return NonFiniteError(
        "objectives.consistency: an embedding of some rank is not finite; the step is refused; lower the learning rate "
        "or look at that input"
    )


def build(section: ConsistencyConfig, setting: ObjectiveSetting) -> Consistency:
    """The term of `objectives.consistency`.

    Raises:
        UserError: only unlabelled samples are asked for, and no set is unlabelled.
    """
    labelled = setting.config.data.labelled()
    if section.samples == "all":
        return Consistency(setting, [True] * len(labelled))
    if all(labelled):
        raise UserError(
            "objectives.consistency.samples=unlabelled, but every set has labels; give a set of data.mix "
            "labelled: false, or take samples: all"
        )
    return Consistency(setting, [not one for one in labelled])
