"""Losses whose margin is the same for every sample and class."""

from torch import Tensor

from dist_train.head.config import HeadConfig
from dist_train.head.margins.base import Classes, Margin, angle, arc_cosine, falling_cosine


class Softmax(Margin):
    """Plain softmax: logit_j = w_j · x + b_j. Nothing is normalised; the bias is the rows' last number."""

    default_scale = 1.0


class NormFace(Margin):
    """s·cos(theta) for all classes (Wang et al. 2017, "NormFace"); s = 30."""

    default_scale = 30.0


class SphereFace(Margin):
    """s·psi(theta), psi = cos(m1·theta) continued falling past pi (Liu et al. 2017, "SphereFace", section 3.2).

    The paper scales by the embedding's norm and anneals an integer m1 = 4 against the plain cosine down to
    lambda = 5, which acts about like the constant m1 = 1.35 (Deng et al. 2019, "ArcFace", section 2.2), the default.
    Here embeddings are normalised, as in "SphereFace Revived" (Liu et al. 2022), with a constant s = 64.
    """

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m1 = 1.35 if config.m1 is None else config.m1

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * falling_cosine(self.m1 * angle(cosines))


class CosFace(Margin):
    """s·(cos(theta) - m3) for the target (Wang et al. 2018, "CosFace", section 3.1); s = 64, m3 = 0.35."""

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m3 = 0.35 if config.m3 is None else config.m3

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * (cosines - self.m3)


class ArcFace(Margin):
    """s·cos(theta + m2) for the target (Deng et al. 2019, "ArcFace", section 2.1); s = 64, m2 = 0.5.

    With `head.centers_per_class` = 3 it is sub-center ArcFace (Deng et al. 2020, section 3.3).
    """

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m2 = 0.5 if config.m2 is None else config.m2
        self.easy = config.easy_margin

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.m2, self.easy)


class Combined(Margin):
    """s·(cos(m1·theta + m2) - m3) for the target (Deng et al. 2019, "ArcFace", section 2.2); s = 64, (1, 0.3, 0.2).

    Past pi the cosine is continued falling as in SphereFace, for any m1 and m2.
    """

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        self.m1 = 1.0 if config.m1 is None else config.m1
        self.m2 = 0.3 if config.m2 is None else config.m2
        self.m3 = 0.2 if config.m3 is None else config.m3

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * (falling_cosine(self.m1 * angle(cosines) + self.m2) - self.m3)
