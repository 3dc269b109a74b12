"""What training leaves to the end of a run."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a phase of training, on every rank.

    Attributes:
        backbone: the network to evaluate and export, whole and in evaluation mode.
        step: optimizer steps done.
        image_size: side of its pictures in pixels.
        samples: [B, 3, S, S] some of them, as they entered the network.
        identities: classes of the set that it was trained on.
        images: samples of that set.
    """

    backbone: nn.Module
    step: int
    image_size: int
    samples: Tensor
    identities: int
    images: int
