"""FDDB's discrete ROC: share of the ellipses that are found against the number of false alarms (Jain 2010, section 5).

At each score the faces found at or above it are paired with the ellipses of the photo, one to one, so that the sum of
their overlaps is largest; a pair with an overlap above a half is right. The overlap of a box and an ellipse is that of
the box and a polygon of 180 corners, where the authors' program counts pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.faces.overlap import areas
from data_prep.judge.curves import Curve
from data_prep.judge.matching import HALF
from data_prep.judge.search import Found

FALSE_ALARMS = (50, 100, 200, 500, 1000, 2000)
"""In the whole set, at which recall is reported."""
_ROUND = np.linspace(0, 2 * np.pi, 180, endpoint=False)


class _Step(NamedTuple):
    """How many more are right and wrong in a photo once faces of this score count too."""

    score: float
    right: int
    wrong: int


def discrete_curve(found: Sequence[Found], ellipses: Sequence[NDArray[np.float64]]) -> Curve:
    """The curve over all photos; `ellipses` of each photo: major and minor radius, angle, center [n, 5]."""
    steps = [step for each, mine in zip(found, ellipses, strict=True) for step in _steps(each, mine)]
    steps.sort(key=lambda step: -step.score)
    scores = np.array([step.score for step in steps])
    right, wrong = (np.cumsum([step[place] for step in steps], dtype=np.int64) for place in (1, 2))
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])
    return Curve(scores[last], right[last], wrong[last], sum(map(len, ellipses)), len(found))


def _steps(found: Found, ellipses: NDArray[np.float64]) -> list[_Step]:
    from scipy.optimize import linear_sum_assignment

    scores = found.faces.scores.astype(np.float64)
    shared = ellipse_overlaps(found.faces.boxes, ellipses)
    steps, before, count_before = [], 0, 0
    for score in np.unique(scores)[::-1]:
        mine = np.flatnonzero(scores >= score)
        rows, columns = linear_sum_assignment(-shared[mine])
        right = int((shared[mine][rows, columns] > HALF).sum())
        steps.append(_Step(float(score), right - before, len(mine) - count_before - (right - before)))
        before, count_before = right, len(mine)
    return steps


def ellipse_overlaps(boxes: NDArray[np.float32], ellipses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union [n, m] of boxes [n, 4] and ellipses [m, 5]."""
    shared = np.zeros((len(boxes), len(ellipses)))
    box_areas = areas(boxes.astype(np.float64))
    for column, (major, minor, angle, x, y) in enumerate(ellipses):
        along, across = major * np.cos(_ROUND), minor * np.sin(_ROUND)
        turned = np.array(
            [x + along * np.cos(angle) - across * np.sin(angle), y + along * np.sin(angle) + across * np.cos(angle)]
        )
        polygon = turned.T.astype(np.float32)
        low, high = polygon.min(0), polygon.max(0)
        for row in np.flatnonzero(((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(1)):
            left, top, right, bottom = boxes[row]
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
            both = cv2.intersectConvexConvex(corners, polygon)[0]
            shared[row, column] = both / (box_areas[row] + np.pi * major * minor - both)
    return shared
