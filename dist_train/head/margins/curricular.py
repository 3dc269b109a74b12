"""A loss that weighs negatives by their hardness."""

import math

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.margins.base import Classes, Lifts, Margin, arc_cosine, sine


class CurricularFace(Margin):
    """ArcFace's target with negatives weighted by hardness (Huang et al. 2020, "CurricularFace", section 3).

    A negative with cos_j > cos(theta_y + m2) becomes s·cos_j·(t + cos_j), where t is the moving average of the global
    batches' mean target cosine; s = 64, m2 = 0.5. No gradient passes through t or the comparison.
    """

    needs_target_cosines = True

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m2 = 0.5 if config.m2 is None else config.m2
        self.momentum = config.curricular_momentum
        self.t = torch.zeros((), device=classes.device)
        self._bounds = torch.empty(0, device=classes.device)  # [G] scaled cosines beyond which a negative is hard

    def observe(self, norms: Tensor, cosines: Tensor | None, training: bool, counted: Tensor | None = None) -> None:
        """See `Margin`."""
        if cosines is None:
            raise ValueError("CurricularFace needs the target cosines")
        if training:
            seen = cosines if counted is None else cosines[counted]
            self.t.lerp_(seen.mean(), 1 - self.momentum)
        self._bounds = self.scale * (cosines * math.cos(self.m2) - sine(cosines) * math.sin(self.m2))

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.m2)

    def lifts(self) -> Lifts:
        """See `Margin`."""
        return Lifts(self._bounds, self.t.clone(), self.scale)

    def state(self) -> dict[str, Tensor]:
        """See `Margin`."""
        return {"t": self.t}
