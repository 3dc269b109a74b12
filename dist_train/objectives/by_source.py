"""The head's loss by the set that samples are from: figures of the steps that are logged."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dist_train.data.config import DataConfig
from dist_train.objectives.gathering import Gathering


class LossBySource:
    """Keeps what the samples of a step lost, and works it out by set when it is asked.

    Until then neither a device nor another rank is waited for.

    Args:
        data: the `data` section.
        gathering: brings together which sets the samples of all ranks are from.
    """

    def __init__(self, data: DataConfig, gathering: Gathering) -> None:
        self._gathering = gathering
        self._names = set_names([data.path, *(each.path for each in data.mix)])
        self._labelled = data.labelled()
        self._kept: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Forget the last step."""
        self._kept = []

    def add(self, losses: Tensor, source: Tensor) -> None:
        """Take a micro-batch: the losses [G] of all ranks' samples, and the sets [B] of this rank's."""
        if len(self._names) > 1:
            self._kept.append((losses, source))

    def figures(self) -> dict[str, float]:
        """`loss.NAME`, the mean over a set's samples, and `share.NAME`, its part of the step's. A collective.

        NAME is the last part of the set's path. A set without a sample in the step, and one that is unlabelled, has no
        loss.
        """
        if not self._kept:
            return {}
        sources = np.concatenate([self._gathering.every_source(source) for _, source in self._kept])
        losses = torch.cat([losses for losses, _ in self._kept]).double().cpu().numpy()
        found = {}
        for number, name in enumerate(self._names):
            here = sources == number
            found[f"share.{name}"] = float(here.mean())
            if here.any() and self._labelled[number]:
                found[f"loss.{name}"] = float(losses[here].mean())
        return found


def set_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path; where two are equal, each with its number among the sets behind it."""
    last = [path.rstrip("/").rpartition("/")[2] or str(number) for number, path in enumerate(paths)]
    often = Counter(last)
    return [name if often[name] == 1 else f"{name}.{number}" for number, name in enumerate(last)]
