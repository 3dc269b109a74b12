"""What training leaves to the end of a run."""

from dataclasses import dataclass

from torch import Tensor, nn

from dist_train.data.aligner import Aligner


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
        aligner: what placed the faces of its pictures; None where that is unknown.
    """

    backbone: nn.Module
    step: int
    image_size: int
    samples: Tensor
    identities: int
    images: int
    aligner: Aligner | None = None
