"""Losses whose margin follows the class, or the hardness of negatives."""

import math

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.head.config import AdaptiveConfig, HeadConfig
from dist_train.head.margins.base import Margin, arc_cosine, sine


def class_margins(config: AdaptiveConfig, counts: Tensor) -> Tensor:
    """Margins in radians [C] from images per class [C]: affine in count ** -power, from `lowest` to `highest`.

    The most frequent class gets `lowest`, the rarest `highest`; equal counts all get the middle.
    """
    rarity = counts.clamp_min(1).double() ** -config.power
    low, high = rarity.min(), rarity.max()
    share = (rarity - low) / (high - low) if high > low else torch.full_like(rarity, 0.5)
    return (config.lowest + (config.highest - config.lowest) * share).float()


class AdaptiveArcFace(Margin):
    """s·cos(theta + m_y) for the target, m_y from the class's number of images; s = 64.

    Margins follow count ** (-1/4), the optimum for a fixed margin budget that Cao et al. 2019 ("Learning Imbalanced
    Datasets with Label-Distribution-Aware Margin Loss", section 3) derive, applied to the angle and mapped to a
    range as by Ha et al. 2020 ("Google Landmark Recognition 2020 Competition Third Place Solution").
    """

    def __init__(self, config: HeadConfig, counts: Tensor | None, start: int, stop: int, device: torch.device) -> None:
        super().__init__(config)
        if counts is None:
            raise UserError("head.margin=adaptive needs the number of images of each class, and none were given")
        self.margins = class_margins(config.adaptive, counts)[start:stop].to(device)

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.margins[classes])


class CurricularFace(Margin):
    """ArcFace's target with negatives weighted by hardness (Huang et al. 2020, "CurricularFace", section 3).

    A negative with cos_j > cos(theta_y + m2) becomes s·cos_j·(t + cos_j), where t is the moving average of the global
    batches' mean target cosine; s = 64, m2 = 0.5. No gradient passes through t or the comparison.
    """

    needs_target_cosines = True

    def __init__(self, config: HeadConfig, device: torch.device) -> None:
        super().__init__(config)
        self.m2 = 0.5 if config.m2 is None else config.m2
        self.momentum = config.curricular_momentum
        self.t = torch.zeros((), device=device)
        self._bounds = torch.empty(0, device=device)  # [G] scaled cosines beyond which a negative is hard

    def observe(self, norms: Tensor, cosines: Tensor | None, training: bool) -> None:
        """See `Margin`."""
        if cosines is None:
            raise ValueError("CurricularFace needs the target cosines")
        if training:
            self.t.lerp_(cosines.mean(), 1 - self.momentum)
        self._bounds = self.scale * (cosines * math.cos(self.m2) - sine(cosines) * math.sin(self.m2))

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.m2)

    def negatives(self, logits: Tensor) -> Tensor:
        """See `Margin`."""
        hard = logits > self._bounds
        lifted = self.t + logits / self.scale
        slope = torch.where(hard, self.t + 2 * logits / self.scale, 1.0)
        logits.copy_(torch.where(hard, logits * lifted, logits))
        return slope

    def state(self) -> dict[str, Tensor]:
        """See `Margin`."""
        return {"t": self.t}
