"""Margin-softmax losses: how the target's cosine, and for some the negatives', become logits.

Notation: t is the cosine between an embedding and its class center, theta its angle, s the scale. A margin changes
the target's logit; the negatives' are s·cos unless said otherwise. Every gradient is that of the published formula,
taken by autograd on the [T] target cosines: no straight-through shortcut.
"""

from typing import ClassVar

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig

_TINY = 1e-6  # angles closer than sqrt(2·_TINY) to 0 or pi have no usable derivative


def sine(cosine: Tensor) -> Tensor:
    """sin(theta) from cos(theta), theta in [0, pi], kept off zero so that its derivative stays finite."""
    return (1 - cosine.square()).clamp_min(_TINY).sqrt()


class Margin:
    """Base of all losses: the plain scaled cosine.

    Attributes:
        normalised: logits are scaled cosines; otherwise inner products with raw embeddings.
        needs_target_cosines: negatives depend on every sample's target cosine, known to one rank only.
        default_scale: s where the configuration gives none.
    """

    normalised: ClassVar[bool] = True
    needs_target_cosines: ClassVar[bool] = False
    default_scale: ClassVar[float] = 64.0

    def __init__(self, config: HeadConfig) -> None:
        self.scale = config.scale or self.default_scale

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

    def negatives(self, logits: Tensor) -> Tensor | None:
        """Change scaled cosines [n, G] of negatives into logits, in place; d logit / d cosine / s, None where 1."""
        return None

    def observe(self, norms: Tensor, cosines: Tensor | None) -> None:
        """See the global batch's norms [G], and target cosines [G] if asked for, before any logit is formed."""

    def penalty(self, norms: Tensor) -> Tensor | None:
        """A differentiable term of this rank's norms [B], its mean is added to the loss."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep, equal on all ranks; live tensors."""
        return {}


class Softmax(Margin):
    """Plain softmax: logit_j = w_j · x + b_j. Nothing is normalised; the bias is the rows' last number."""

    normalised = False
    default_scale = 1.0


class NormFace(Margin):
    """s·cos(theta) for all classes (Wang et al. 2017, "NormFace", section 3.3)."""

    default_scale = 30.0


class CosFace(Margin):
    """s·(cos(theta) - m3) for the target (Wang et al. 2018, "CosFace", section 3.1); s = 64, m3 = 0.35."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.m3 = 0.35 if config.m3 is None else config.m3

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * (cosines - self.m3)


def arc_cosine(cosines: Tensor, margin: float | Tensor, easy: bool = False) -> Tensor:
    """cos(theta + m) with the continuation of the authors' code where theta + m passes pi.

    There cos(theta) - m·sin(m) takes its place, which goes on falling. `easy`: cos(theta + m) only where
    cos(theta) > 0, plain cos(theta) elsewhere.
    """
    margin = torch.as_tensor(margin, dtype=cosines.dtype, device=cosines.device)
    cos_m, sin_m = margin.cos(), margin.sin()
    turned = cosines * cos_m - sine(cosines) * sin_m
    if easy:
        return torch.where(cosines > 0, turned, cosines)
    return torch.where(cosines > -cos_m, turned, cosines - margin * sin_m)


class ArcFace(Margin):
    """s·cos(theta + m2) for the target (Deng et al. 2019, "ArcFace", section 2.1); s = 64, m2 = 0.5."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.m2 = 0.5 if config.m2 is None else config.m2
        self.easy = config.easy_margin

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.m2, self.easy)


_MARGINS: dict[str, type[Margin]] = {
    "softmax": Softmax,
    "normface": NormFace,
    "cosface": CosFace,
    "arcface": ArcFace,
}


def build_margin(config: HeadConfig) -> Margin:
    """The margin that `config` names."""
    return _MARGINS[config.margin](config)
