"""What happens to boxes between the networks: suppression, regression, squaring, clipping.

Boxes are [n, 4] float32: left, top, right, bottom in pixels. Widths count a pixel more (right - left + 1) wherever the
published models were made so.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression within groups by intersection over union.

    Args:
        boxes: [n, 4].
        scores: [n].
        groups: [n] integers.
        overlap: above it, the less certain box goes.

    Returns:
        Numbers of the boxes that stay, the most certain first.
    """
    # float64, as batched_nms moves groups apart by adding to coordinates: the result must not depend on how far.
    return batched_nms(boxes.double(), scores.double(), groups, overlap)


def suppress_nested(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """The same by intersection over the smaller of two areas, which a box inside another does not survive."""
    kept = []
    for group in groups.unique():
        members = torch.where(groups == group)[0]
        members = members[scores[members].argsort(descending=True, stable=True)]
        covered = (_overlap_of_smaller(boxes[members]) > overlap).cpu().numpy()
        stays = [True] * len(members)
        for better in range(len(members)):
            if stays[better]:
                for worse in covered[better, better + 1 :].nonzero()[0]:
                    stays[better + 1 + worse] = False
        kept.append(members[torch.tensor(stays, device=members.device)])
    return torch.cat(kept) if kept else groups.new_empty(0, dtype=torch.long)


def _overlap_of_smaller(boxes: Tensor) -> Tensor:
    """Intersection over the smaller area, [n, n] of `boxes` [n, 4]."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp_(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return shared / torch.minimum(area[:, None], area[None])


def regress(boxes: Tensor, offsets: Tensor, extra_px: int) -> Tensor:
    """Sides moved by `offsets` [n, 4], in units of width and height, which count `extra_px` more pixels."""
    size = boxes[:, 2:] - boxes[:, :2] + extra_px
    return boxes + offsets * size.repeat(1, 2)


def square(boxes: Tensor) -> Tensor:
    """The shorter side made as long as the longer, about the same centre."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.amax(1, keepdim=True)
    start = boxes[:, :2] + size * 0.5 - side * 0.5
    return torch.cat([start, start + side], 1)


def pixels(boxes: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """The pixels of each box that are in its picture.

    Coordinates of boxes count from 1 and are inclusive, as in the authors' programs.

    Args:
        boxes: [n, 4].
        heights: [n] of the pictures.
        widths: [n].

    Returns:
        [n, 4] int64: left, top, right, bottom, from 0, the last two exclusive; nothing is left of a box outside.
    """
    left, top, right, bottom = boxes.trunc().long().unbind(1)
    return torch.stack(
        [left.clamp(min=1) - 1, top.clamp(min=1) - 1, torch.minimum(right, widths), torch.minimum(bottom, heights)], 1
    )
