"""The lowest scores that a network is to accept, chosen on photos that nothing was learnt from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.overlap import covered, overlaps
from data_prep.judge.matching import WRONG, match
from data_prep.mtcnn.training.choice import Known
from data_prep.mtcnn.training.frames import Floats

LOWEST, HIGHEST = 0.05, 0.95
"""Thresholds stay between; detections for their choice are made at the lowest."""
_SQUARE_OF_FACE = 0.4  # that of a square candidate, which no oblong face can fill
_IGNORED = 0.5  # share of a detection in a box that is to be ignored


class Judged(NamedTuple):
    """How the detections on some photos fit their faces.

    Attributes:
        found: [faces], the score of the detection that each face has; 0 where it has none.
        false_alarms: scores of detections that fit none.
        photos: number of them.
    """

    found: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    photos: int

    @classmethod
    def together(cls, parts: "Sequence[Judged]") -> "Judged":
        """What several ranks judged."""
        return cls(
            np.concatenate([part.found for part in parts]),
            np.concatenate([part.false_alarms for part in parts]),
            sum(part.photos for part in parts),
        )

    def recall(self, threshold: float) -> float:
        """Share of the faces that are found above a threshold; 0 where there are none."""
        return float((self.found > threshold).mean()) if len(self.found) else 0.0

    def false_alarms_per_photo(self, threshold: float) -> float:
        """False alarms above a threshold, per photo."""
        return float((self.false_alarms > threshold).sum() / max(1, self.photos))


def judge_candidates(regions: Floats, scores: NDArray[np.float32], known: Known) -> Judged:
    """How square candidates [n, 4] of a photo with `scores` [n] fit its faces: each face has the best that fits it."""
    fits = overlaps(regions, known.faces) >= _SQUARE_OF_FACE  # [n, faces]
    found = np.where(fits, scores.astype(np.float64)[:, None], 0).max(0, initial=0)
    alarms = scores[~fits.any(1) & _counted(regions, known)] if len(scores) else scores
    return Judged(found, alarms.astype(np.float64), 1)


def judge_faces(boxes: Floats, scores: NDArray[np.float32], known: Known) -> Judged:
    """How the detected faces [n, 4] of a photo fit its faces, by the rule of `headcount prep eval-detector`."""
    every = np.concatenate([known.faces, known.ignored])
    face = match(boxes, scores, every, np.arange(len(every)) >= len(known.faces))
    found = np.zeros(len(known.faces))
    found[face[face >= 0]] = scores[face >= 0]
    return Judged(found, scores[face == WRONG].astype(np.float64), 1)


def threshold_by_recall(judged: Judged, recall: float) -> float:
    """The highest threshold that leaves a share `recall` of the faces which are found at all."""
    scores = np.sort(judged.found[judged.found > 0])
    if not len(scores):
        return LOWEST
    lost = int((1 - recall) * len(scores) + 1e-9)
    return _bounded(float(np.nextafter(scores[lost], 0)))


def threshold_by_false_alarms(judged: Judged, per_photo: float) -> float:
    """The lowest threshold with at most `per_photo` false alarms per photo."""
    scores = np.sort(judged.false_alarms)[::-1]
    allowed = int(per_photo * judged.photos + 1e-9)
    return _bounded(float(scores[allowed])) if allowed < len(scores) else LOWEST


def _counted(boxes: Floats, known: Known) -> NDArray[np.bool_]:
    """Which boxes [n, 4] would be false alarms if they fit no face: those that do not lie in what is ignored."""
    found: NDArray[np.bool_] = covered(boxes, known.ignored).max(1, initial=0) < _IGNORED
    return found


def _bounded(threshold: float) -> float:
    return min(max(threshold, LOWEST), HIGHEST)
