"""Grey levels of pictures, 0 .. 255, and the floats -1 .. 1 that networks take; the one place that knows both."""

import torch
from torch import Tensor


def normalise(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Grey levels 0 .. 255 to float32 -1 .. 1 (mean 0.5, standard deviation 0.5), where the tensor is."""
    floats = images.to(torch.float32) if out is None else out.copy_(images)
    return floats.mul_(1 / 127.5).sub_(1)


def grey_levels(images: Tensor) -> Tensor:
    """The inverse of `normalise`: floats in -1 .. 1 to whole grey levels 0 .. 255, as float32."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255)
