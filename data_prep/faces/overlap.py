"""Overlap of boxes."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""[n, 4]: left, top, right, bottom."""


def intersections(first: Boxes, second: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Areas [n, m] that boxes share; `extra` is added to each width and height."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.asarray((high - low + extra).clip(0).prod(2), np.float64)


def areas(boxes: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Areas [n] of boxes."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2] + extra).clip(0).prod(1), np.float64)


def overlaps(first: Boxes, second: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Intersection over union [n, m]; 0 where the union is empty."""
    shared = intersections(first, second, extra)
    union = areas(first, extra)[:, None] + areas(second, extra)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def covered(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Share [n, m] of each first box that lies in each second one; 0 for a box without area."""
    area = areas(first)[:, None]
    shared = intersections(first, second)
    return np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
