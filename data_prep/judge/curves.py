"""Recall against false alarms, average precision, recall by size of face."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.judge.matching import WRONG, Matches

FALSE_ALARMS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Per photo, at which recall is reported."""
HEIGHTS_PX = (0, 20, 30, 50, 100, 300)
"""Heights of faces at which a row of the table begins."""


class Curve(NamedTuple):
    """Recall against false alarms, a point for each score at which either changes, the highest first.

    Attributes:
        scores: least score of a face that counts as found, [P].
        right: number of known faces found, [P].
        wrong: number of false alarms, [P].
        faces: number of known faces.
        photos: number of photos.
    """

    scores: NDArray[np.float64]
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    faces: int
    photos: int

    def at(self, false_alarms: float) -> int | None:
        """Number of the last point with at most so many false alarms per photo; None where there is none."""
        allowed = np.flatnonzero(self.wrong <= false_alarms * self.photos)
        return int(allowed[-1]) if len(allowed) else None

    def recall(self, false_alarms: float) -> float:
        """Share of known faces found at no more false alarms per photo; not a number without known faces."""
        if not self.faces:
            return float("nan")
        point = self.at(false_alarms)
        return 0.0 if point is None else float(self.right[point] / self.faces)

    def threshold(self, false_alarms: float) -> float | None:
        """Least score at which there are no more false alarms per photo; None where there are more at any."""
        point = self.at(false_alarms)
        return None if point is None else float(self.scores[point])


def curve_of(matches: Matches) -> Curve:
    """The curve of all found faces."""
    last = np.flatnonzero(np.append(np.diff(matches.scores) != 0, True)[: len(matches.scores)])  # of equal scores
    right, wrong = (np.cumsum(kind, dtype=np.int64) for kind in (matches.face >= 0, matches.face == WRONG))
    return Curve(matches.scores[last], right[last], wrong[last], matches.faces, matches.photos)


def average_precision(curve: Curve) -> float:
    """Area under precision over recall, precision being the best at that recall or above (VOC 2010 and later)."""
    if not curve.faces:
        return float("nan")
    recall = np.concatenate([[0.0], curve.right / curve.faces])
    precision = curve.right / np.maximum(curve.right + curve.wrong, 1)
    return area(recall, precision)


def area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Area under the highest precision at each recall or above: recall [P + 1] from 0 and rising, precision [P]."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


class SizeRow(NamedTuple):
    """Faces of one size.

    Attributes:
        low: least height in pixels.
        high: height that they stay below; None: any.
        faces: number of known ones.
        found: number of those found at no more than each of `FALSE_ALARMS` per photo, of faces of all sizes.
    """

    low: int
    high: int | None
    faces: int
    found: tuple[int, ...]


def by_height(heights: NDArray[np.float64], scores: NDArray[np.float64], curve: Curve) -> list[SizeRow]:
    """Known faces [F] by their heights; sizes that no face has are left out.

    Args:
        heights: in pixels, [F].
        scores: that they are found with, [F]; -inf where they are not found.
        curve: of all faces.
    """
    least = [curve.threshold(each) for each in FALSE_ALARMS]
    found = np.array([scores >= (np.inf if each is None else each) for each in least])  # [FALSE_ALARMS, F]
    ends = (*HEIGHTS_PX[1:], None)
    rows = []
    for low, high in zip(HEIGHTS_PX, ends, strict=True):
        mine = (heights >= low) & (heights < (high or np.inf))
        if mine.any():
            rows.append(SizeRow(low, high, int(mine.sum()), tuple(found[:, mine].sum(1).tolist())))
    return rows
