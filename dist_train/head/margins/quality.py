"""Losses whose margin follows the embedding's norm, taken as the picture's quality."""

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.margins.base import Classes, Margin, angle, arc_cosine


class AdaFace(Margin):
    """s·(cos(theta + g_angle) - g_add) for the target (Kim et al. 2022, "AdaFace", section 3); s = 64, m = 0.4.

    q = clip(h·(norm - mean) / std, -1, 1), g_angle = -m·q, g_add = m·q + m. Mean and deviation of the norms are
    moving averages over global batches; no gradient passes through q. theta + g_angle is kept in [0, pi].
    """

    _EPS = 1e-3

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m2 = 0.4 if config.m2 is None else config.m2
        self.h = config.adaface.concentration
        self.momentum = config.adaface.momentum
        # The reference code starts from these values: margins are near m·0 until the averages have settled.
        self.mean = torch.tensor(20.0, device=classes.device)
        self.deviation = torch.tensor(100.0, device=classes.device)

    def observe(self, norms: Tensor, cosines: Tensor | None, training: bool, counted: Tensor | None = None) -> None:
        """See `Margin`."""
        if training:
            norms = (norms if counted is None else norms[counted]).clamp(0.001, 100)
            self.mean.lerp_(norms.mean(), 1 - self.momentum)
            self.deviation.lerp_(norms.std(correction=min(1, len(norms) - 1)), 1 - self.momentum)

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        norms = norms.detach().clamp(0.001, 100)
        quality = ((norms - self.mean) / (self.deviation + self._EPS) * self.h).clamp(-1, 1)
        turned = (angle(cosines) - self.m2 * quality).clamp(self._EPS, torch.pi - self._EPS)
        return self.scale * (turned.cos() - (self.m2 + self.m2 * quality))

    def state(self) -> dict[str, Tensor]:
        """See `Margin`."""
        return {"norm_mean": self.mean, "norm_deviation": self.deviation}


class MagFace(Margin):
    """s·cos(theta + m(a)) with a norm regulariser (Meng et al. 2021, "MagFace", section 3); s = 64.

    a = norm clipped to [l_a, u_a]; m(a) rises linearly from l_m to u_m; the loss gets lambda_g · mean of
    g(a) = a / u_a² + 1 / a. Gradients pass through m(a) and g(a).
    """

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.config = config.magface

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        own = self.config
        rise = (own.upper_margin - own.lower_margin) / (own.upper_norm - own.lower_norm)
        margins = rise * (norms.clamp(own.lower_norm, own.upper_norm) - own.lower_norm) + own.lower_margin
        return self.scale * arc_cosine(cosines, margins)

    def penalty(self, norms: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `Margin`."""
        clipped = norms.clamp(self.config.lower_norm, self.config.upper_norm)
        each = clipped / self.config.upper_norm**2 + 1 / clipped
        return self.config.weight * (each.mean() if weights is None else (each * weights).sum())
