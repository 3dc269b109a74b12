"""Operations on boxes between the networks: suppression, regression, squaring, clipping.

Boxes are [n, 4] float32: left, top, right, bottom in pixels. Widths count a pixel more (right - left + 1) where the
authors' programs do.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_TOGETHER = 256  # boxes in a call of `nms`, which compares all pairs; smaller calls cost more in all


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """Numbers of the boxes that survive non-maximum suppression within groups, by intersection over union.

    Args:
        boxes: [n, 4].
        scores: [n].
        groups: [n] integers.
        overlap: intersection over union above which the less certain of two boxes is dropped.

    Returns:
        [m] int64, the most certain first.
    """
    _load_nms()
    if not len(boxes):
        return groups.new_empty(0, dtype=torch.long)
    order = groups.argsort(stable=True)
    _, rank, counts = groups[order].unique_consecutive(return_inverse=True, return_counts=True)
    # Groups are shifted apart, so that one call takes several; in float64 the shifts do not change the overlaps.
    apart = boxes[order].double()
    apart += (rank * (apart.max() - apart.min() + 1))[:, None]
    sure = scores[order].double()
    kept, start = [], 0
    for end in counts.cumsum(0).tolist():
        if end - start >= _TOGETHER or end == len(order):
            kept.append(order[start + torch.ops.torchvision.nms(apart[start:end], sure[start:end], overlap)])
            start = end
    numbers = torch.cat(kept)
    return numbers[scores[numbers].argsort(descending=True, stable=True)]


@cache
def _load_nms() -> None:
    """Load torchvision's library, so that `nms` is in `torch.ops`.

    To import torchvision itself would take every worker of a job as long as to import torch, for one function.
    """
    package = find_spec("torchvision")
    folders = package.submodule_search_locations if package else None
    libraries = [path for folder in folders or [] for path in sorted(Path(folder).glob("_C*.so"))]
    if libraries:
        torch.ops.load_library(libraries[0])
    else:
        import torchvision  # noqa: F401 - loads it from wherever it is


def suppress_nested(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """As `suppress`, by intersection over the smaller of two areas: a box inside another one is dropped."""
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
    """Intersection over the smaller area, [n, n], for all pairs of `boxes` [n, 4]."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp_(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return shared / torch.minimum(area[:, None], area[None])


def regress(boxes: Tensor, offsets: Tensor, extra_px: int) -> Tensor:
    """Boxes with sides moved by `offsets` [n, 4] in units of width and height, which count `extra_px` more pixels."""
    size = boxes[:, 2:] - boxes[:, :2] + extra_px
    return boxes + offsets * size.repeat(1, 2)


def square(boxes: Tensor) -> Tensor:
    """Squares about the centres of the boxes, with the longer side of each."""
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
