"""How far found points are from known ones, as a share of the known box's width."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.judge.matching import Matches
from data_prep.judge.search import Found

NAMES = ("left eye", "right eye", "nose", "left mouth", "right mouth")
WITHIN = (0.05, 0.1)
"""Errors below which the share of faces is reported."""


class PointErrors(NamedTuple):
    """Errors of the five points of found faces, over the width of their known boxes.

    Attributes:
        faces: number of faces that were found and whose points are known, by the set and by the detector.
        mean: over all faces and points; the usual normalised mean error.
        median: of the faces' means.
        within: by limit, the share of faces whose mean is below.
        points: mean of each point, by name.
    """

    faces: int
    mean: float
    median: float
    within: dict[float, float]
    points: dict[str, float]


def point_errors(found: Sequence[Found], matches: Matches) -> PointErrors | None:
    """Errors over all found faces; None where there is none with known points."""
    right = np.flatnonzero(matches.face >= 0)
    errors = np.array([_errors(found[matches.photo[at]], matches.place[at], matches.face[at]) for at in right])
    errors = errors.reshape(-1, 5)
    errors = errors[np.isfinite(errors).all(1)]
    if not len(errors):
        return None
    faces = errors.mean(1)
    return PointErrors(
        len(errors),
        float(errors.mean()),
        float(np.median(faces)),
        {limit: float((faces < limit).mean()) for limit in WITHIN},
        dict(zip(NAMES, errors.mean(0).tolist(), strict=True)),
    )


def _errors(found: Found, place: np.int64, face: np.int64) -> NDArray[np.float64]:
    """Distances of the five points of one face, over its width: [5]."""
    known = found.photo.landmarks[face].astype(np.float64)
    left, _, right, _ = found.photo.boxes[face].astype(np.float64)
    return np.asarray(np.linalg.norm(found.faces.landmarks[place] - known, axis=1) / (right - left), np.float64)
