"""The sample-to-sample loss with one learned threshold, over the gathered batch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from dist_train.checkpoint.part import HostCopy
from dist_train.errors import UserError
from dist_train.head.exchange import HeadGroup
from dist_train.objectives.config import SampleToSampleConfig
from dist_train.objectives.pairs import PairTerm
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.to_device import to_device


class SampleToSample(PairTerm):
    """USS loss (Jia et al. 2023, UniTSFace, section 3): one threshold for all pairs of one and of two identities.

    With cosines c, scale s, margin m, positives P(i), negatives N(i) of sample i and one learned bias b for all:

        loss(i) = mean over p in P(i) of log(1 + exp(b - s·(c(i, p) - m))) + sum over n in N(i) of log(1 + exp(s·c(i, n) - b))

    The value is the mean over all samples with a positive. Pairs are those of the gathered batch; the paper's have one
    positive each, and its authors keep an embedding of every identity for them. As in their code b begins as the mean
    over those samples of log(sum over N(i) of exp(s·c(i, n))), with the first batch that has pairs; b / s is a cosine,
    the threshold. It is a `Part` of checkpoints and moves against its gradient by a step of its own.

    Args:
        section: the term's keys.
        setting: what it is built in.
    """  # noqa: E501 - a formula on one line

    def __init__(self, section: SampleToSampleConfig, setting: ObjectiveSetting) -> None:
        super().__init__("sample_to_sample", setting.gathering, setting.ranks.rank == 0)
        self._scale, self._margin, self._lr_scale = section.scale, section.margin, section.lr_scale
        self._ranks = HeadGroup(setting.ranks.group, setting.ranks.rank, setting.ranks.world_size)
        self._bias = torch.zeros((), device=setting.ranks.device, requires_grad=True)
        self._steps = torch.zeros((), dtype=torch.int64)  # that have moved the bias; on the host, which branches on it

    def value(self, embeddings: Tensor, labels: Tensor, positives: NDArray[np.int64]) -> Tensor:
        """See `PairTerm`; the figure `threshold` is a cosine."""
        with_pairs = to_device(torch.from_numpy(np.flatnonzero(positives)), labels.device)
        cosines = embeddings[with_pairs] @ embeddings.T  # [anchors, n]
        same = labels[with_pairs][:, None] == labels[None, :]
        if not self._steps and self._bias.grad is None:
            self._begin(cosines.detach(), same)
        counts = to_device(torch.from_numpy(positives[positives > 0]), cosines.device).to(cosines.dtype)
        # A sample is no pair with itself; it stands among those of its label.
        itself = torch.zeros_like(same).scatter_(1, with_pairs[:, None], True)
        zero = cosines.new_zeros(())
        pulls = torch.where(same & ~itself, softplus(self._bias - self._scale * (cosines - self._margin)), zero)
        pushes = torch.where(same, zero, softplus(self._scale * cosines - self._bias))
        self._figures["threshold"] = self._bias.detach() / self._scale
        return (pulls.sum(dim=1) / counts + pushes.sum(dim=1)).mean()

    @torch.no_grad()
    def _begin(self, cosines: Tensor, same: Tensor) -> None:
        """The bias that the first batch's negatives ask for; a batch of one identity leaves it at 0."""
        terms = torch.where(same, -torch.inf, self._scale * cosines).logsumexp(dim=1)
        mean = torch.where(terms.isfinite(), terms, 0).mean()
        self._bias.copy_(self._mean_of_ranks(mean))

    def step(self, lr: float, *, measure: bool) -> None:
        """Move the bias against its gradient since the last step."""
        gradient, self._bias.grad = self._bias.grad, None
        if gradient is not None:
            self._steps += 1
            with torch.no_grad():
                self._bias.sub_(self._mean_of_ranks(gradient), alpha=lr * self._lr_scale)

    def _mean_of_ranks(self, value: Tensor) -> Tensor:
        """Of what every rank has computed alike: on unlike devices the ranks' biases would drift apart."""
        return self._ranks.all_reduce(value) / self._ranks.world_size

    def zero_grad(self) -> None:
        """See `Objective`; a bias that a refused first step has begun begins anew."""
        super().zero_grad()
        self._bias.grad = None
        if not self._steps:
            self._bias.detach().zero_()

    def state_dict(self) -> dict[str, Any]:
        """See `Part`: the bias [] and how many steps have moved it []."""
        return {"bias": self._bias.detach(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`.

        Raises:
            UserError: it is the state of something else.
        """
        own = self.state_dict()
        if set(state) != set(own) or any(list(state[name].shape) for name in own):
            raise UserError(f"state of objectives.sample_to_sample: {sorted(state)}, expected numbers {sorted(own)}")
        self.zero_grad()
        for name, value in own.items():
            value.copy_(state[name])

    def snapshot(self) -> HostCopy:
        """See `Part`."""
        return HostCopy(self.state_dict())


def build(section: SampleToSampleConfig, setting: ObjectiveSetting) -> SampleToSample:
    """The term that `objectives.sample_to_sample` asks for."""
    return SampleToSample(section, setting)
