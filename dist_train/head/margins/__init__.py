"""Margin-softmax losses: how the target's cosine, and for some the negatives', become logits."""

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.margins.adaptive import AdaptiveArcFace, CurricularFace
from dist_train.head.margins.base import Margin
from dist_train.head.margins.fixed import ArcFace, Combined, CosFace, NormFace, Softmax, SphereFace
from dist_train.head.margins.quality import AdaFace, MagFace

__all__ = ["Margin", "build_margin"]

_FIXED: dict[str, type[Margin]] = {
    "softmax": Softmax,
    "normface": NormFace,
    "sphereface": SphereFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": Combined,
    "magface": MagFace,
}


def build_margin(
    config: HeadConfig, num_classes: int, start: int, stop: int, device: torch.device, class_counts: Tensor | None
) -> Margin:
    """The margin that `config` names.

    Args:
        config: the `head` section.
        num_classes: C.
        start: this rank's first class.
        stop: one past its last.
        device: of embeddings.
        class_counts: [C] images per class, for `adaptive`.

    Raises:
        UserError: counts are needed and missing, or not one for each class.
    """
    if class_counts is not None and class_counts.shape != (num_classes,):
        raise UserError(f"class counts of shape {list(class_counts.shape)} for {num_classes} classes")
    if config.margin == "adaptive":
        return AdaptiveArcFace(config, class_counts, start, stop, device)
    if config.margin == "adaface":
        return AdaFace(config, device)
    if config.margin == "curricularface":
        return CurricularFace(config, device)
    return _FIXED[config.margin](config)
