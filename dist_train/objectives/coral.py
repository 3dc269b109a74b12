"""Alignment of two domains: the distance between the covariances of their embeddings."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.objectives.config import CoralConfig
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Conditional
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.to_device import to_device


class Coral(Conditional):
    """|C_s - C_t|² / (4·D²), Frobenius, of the covariances of source and target embeddings [n, D].

    The source is `data.path`, each set of `data.mix` a target; of several targets it is the mean. Covariances are over
    the global micro-batch, of raw embeddings, with n - 1. A target counts 0 while it or the source has fewer than two
    samples there. No label is needed.

    Source: Sun and Saenko 2016, "Deep CORAL: correlation alignment for deep domain adaptation", section 3.1.

    Args:
        gathering: of the run.
        targets: number of sets in `data.mix`.
    """

    def __init__(self, gathering: Gathering, targets: int) -> None:
        self._gathering, self._targets = gathering, targets
        self._value = torch.zeros(())

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._gathering.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        every = self._gathering(embeddings, batch)
        total = every.embeddings.sum() * 0  # so that a micro-batch of one set has a gradient, of zeros
        source = covariance(every.embeddings, every.sources == 0)
        for number in range(1, self._targets + 1):
            target = covariance(every.embeddings, every.sources == number)
            if source is not None and target is not None:
                total = total + (source - target).square().sum()
        value = total / (4 * embeddings.shape[1] ** 2 * self._targets)
        self._value = value.detach()
        return value

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Objective`; there is nothing to update."""

    def zero_grad(self) -> None:
        """See `Objective`."""

    def statistics(self) -> dict[str, float]:
        """See `Objective`: `loss`, the distance."""
        return {"loss": float(self._value)}

    def close(self) -> None:
        """See `Objective`."""


def covariance(embeddings: Tensor, some: NDArray[np.bool_]) -> Tensor | None:
    """Covariance [D, D] of the samples `some` [G] of `embeddings` [G, D]; None of fewer than two."""
    numbers = np.flatnonzero(some)
    if len(numbers) < 2:
        return None
    found = embeddings[to_device(torch.from_numpy(numbers), embeddings.device)]
    centred = found - found.mean(dim=0)
    return centred.T @ centred / (len(numbers) - 1)


def build(section: CoralConfig, setting: ObjectiveSetting) -> Coral:
    """The term of `objectives.coral`.

    Raises:
        UserError: there is one set only.
    """
    targets = len(setting.config.data.mix)
    if not targets:
        raise UserError("objectives.coral aligns data.path with the sets of data.mix, and data.mix names none; add one")
    return Coral(setting.gathering, targets)
