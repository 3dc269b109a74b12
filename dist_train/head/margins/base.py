"""What a margin is, and the angle arithmetic that several share.

Notation: t is the cosine between an embedding and its class center, theta its angle, s the scale. A margin changes
the target's logit; the negatives' are s·cos unless said otherwise. Every gradient is that of the published formula,
taken by autograd on the [T] target cosines: no straight-through shortcut.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.margins.table import MARGINS

_TINY = 1e-6  # sin² is kept above: at angles closer than 0.001 to 0 or pi its derivative would not be finite


def sine(cosine: Tensor) -> Tensor:
    """sin(theta) from cos(theta), theta in [0, pi], kept off zero so that its derivative stays finite."""
    return (1 - cosine.square()).clamp_min(_TINY).sqrt()


def angle(cosine: Tensor) -> Tensor:
    """Theta from cos(theta), kept 0.001 off 0 and pi so that its derivative stays finite."""
    return cosine.clamp(_TINY / 2 - 1, 1 - _TINY / 2).acos()


def falling_cosine(phi: Tensor) -> Tensor:
    """cos(phi) continued past pi so that it goes on falling: (-1)^k cos(phi) - 2k, k = floor(phi / pi)."""
    turns = (phi / math.pi).floor().detach()
    return (1 - 2 * turns.remainder(2)) * phi.cos() - 2 * turns


def arc_cosine(cosine: Tensor, margin: float | Tensor, easy: bool = False) -> Tensor:
    """cos(theta + m), continued as in ArcFace's reference code where theta + m passes pi.

    There cos(theta) - m·sin(m) takes its place, which goes on falling.

    Args:
        cosine: [T] cos(theta).
        margin: m in radians, one number or [T].
        easy: cos(theta + m) only where cos(theta) > 0, plain cos(theta) elsewhere.
    """
    cos_m: float | Tensor
    sin_m: float | Tensor
    cos_m, sin_m = (margin.cos(), margin.sin()) if isinstance(margin, Tensor) else (math.cos(margin), math.sin(margin))
    turned = cosine * cos_m - sine(cosine) * sin_m
    if easy:
        return torch.where(cosine > 0, turned, cosine)
    return torch.where(cosine > -cos_m, turned, cosine - margin * sin_m)


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a rank among all.

    Attributes:
        total: C, over all ranks.
        start: this rank's first class.
        stop: one past its last.
        device: where embeddings are.
        counts: [C] images of each class; None: not counted.
    """

    total: int
    start: int
    stop: int
    device: torch.device
    counts: Tensor | None = None


class Lifts(NamedTuple):
    """Negatives that are hard for a sample weigh more: s·cos becomes s·cos·(base + cos).

    Attributes:
        bounds: [G] scaled cosines beyond which a negative is hard.
        base: [] number.
        scale: s.
    """

    bounds: Tensor
    base: Tensor
    scale: float

    def apply(self, logits: Tensor) -> Tensor:
        """Change scaled cosines [n, G] into logits, in place; -inf stays -inf. The slopes [n, G] of the change."""
        hard = logits > self.bounds
        lifted = self.base + logits / self.scale
        slope = torch.where(hard, self.base + 2 * logits / self.scale, 1.0)
        logits.copy_(torch.where(hard, logits * lifted, logits))
        return slope


class Margin:
    """Base of all losses: the plain scaled cosine.

    Args:
        config: the `head` section.
        classes: this rank's.

    Attributes:
        scale: s.
        normalised: logits are scaled cosines; otherwise inner products with raw embeddings.
        needs_target_cosines: negatives depend on every sample's target cosine, known to one rank only.
        default_scale: s where the configuration gives none.
    """

    needs_target_cosines: ClassVar[bool] = False
    default_scale: ClassVar[float] = 64.0

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        self.scale = config.scale or self.default_scale
        self.normalised = MARGINS[config.margin].normalised

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """Logits of the targets that this rank owns.

        Args:
            cosines: [T] cosines to the nearest target center (inner products where not normalised).
            norms: [T] norms of the raw embeddings.
            classes: [T] classes, counted from this rank's first.

        Returns:
            [T], differentiable in `cosines` and `norms`.
        """
        return self.scale * cosines

    def lifts(self) -> Lifts | None:
        """How the batch that was observed last lifts its hard negatives; None: their logits are scaled cosines."""
        return None

    def observe(self, norms: Tensor, cosines: Tensor | None, training: bool, counted: Tensor | None = None) -> None:
        """See the global batch's norms [G], and target cosines [G] if asked for, before any logit is formed.

        Moving averages move only in training, by the samples `counted` [n] int64 (None: all), whatever their weight.
        """

    def penalty(self, norms: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """A term of the loss that depends on the global batch's norms [G] alone; [], differentiable.

        With `weights` [G] it is their sum over samples, else the mean.
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep, equal on all ranks; live tensors."""
        return {}
