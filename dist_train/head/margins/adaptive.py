"""A loss whose margin follows the class: the fewer images, the larger."""

import torch
from torch import Tensor

from dist_train.head.config import AdaptiveConfig, HeadConfig
from dist_train.head.margins.base import Classes, Margin, arc_cosine


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

    def __init__(self, config: HeadConfig, classes: Classes) -> None:
        super().__init__(config, classes)
        if classes.counts is None:
            raise ValueError("the adaptive margin needs the number of images of each class")
        self.margins = class_margins(config.adaptive, classes.counts)[classes.start : classes.stop].to(classes.device)

    def target_logits(self, cosines: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """See `Margin`."""
        return self.scale * arc_cosine(cosines, self.margins[classes])
