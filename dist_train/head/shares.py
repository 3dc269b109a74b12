"""What each sample of a global batch counts in the loss."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.to_device import to_device


@dataclass(frozen=True, slots=True)
class Shares:
    """The weights of a weighted loss, in which their sum takes the place of the mean.

    Attributes:
        weights: [G] float32, on the head's device.
        counted: [n] int64, the samples whose weight is not 0, on that device.
        ignored: [G] bool, the others.
        some: whether any sample counts.
    """

    weights: Tensor
    counted: Tensor
    ignored: Tensor
    some: bool

    @classmethod
    def of(cls, weights: Tensor, device: torch.device) -> Self:
        """Of `weights` [G] on the host (others are waited for).

        Raises:
            UserError: a weight is negative or not finite.
        """
        host = weights.detach().to("cpu", torch.float64).numpy()
        wrong = np.flatnonzero(~(np.isfinite(host) & (host >= 0)))
        if len(wrong):
            raise UserError(f"weight {host[wrong[0]]} of sample {wrong[0]}, expected a finite number from 0 on")
        numbers = np.flatnonzero(host)
        near, counted, ignored = (
            to_device(torch.from_numpy(values), device) for values in (host.astype(np.float32), numbers, host == 0)
        )
        return cls(near, counted, ignored, len(numbers) > 0)


def same_weights(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two weightings of a batch, None for none, are the same."""
    return one is other or (one is not None and other is not None and torch.equal(one, other))
