"""The figures of a detector on a set of faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.annotated import FaceList
from data_prep.judge import fddb
from data_prep.judge.curves import FALSE_ALARMS, Curve, SizeRow, average_precision, by_height, curve_of
from data_prep.judge.matching import Matches, match_all
from data_prep.judge.points import PointErrors, point_errors
from data_prep.judge.search import Found, Search
from data_prep.judge.subsets import Subsets, counted_faces
from data_prep.judge.wider import wider_precision

ONE = 1.0
"""False alarms per photo at which misses and false alarms are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All results.

    Attributes:
        matches: found faces with what they are.
        curve: recall against false alarms.
        precision: average precision at an overlap of a half.
        threshold: least score at one false alarm per photo.
        missed: of each photo the known faces that were not found at that score, bool [n].
        sizes: how many faces are found, by height.
        points: errors of the five points at any score; None where none are known.
        wider: WIDER FACE's average precision by subset; None for other sets.
        fddb: FDDB's discrete curve; None for other sets.
    """

    matches: Matches
    curve: Curve
    precision: float
    threshold: float
    missed: list[NDArray[np.bool_]]
    sizes: list[SizeRow]
    points: PointErrors | None
    wider: dict[str, float] | None
    fddb: Curve | None


def figures_of(faces: FaceList, search: Search, subsets: Subsets) -> Figures:
    """The figures of what was found in a set."""
    found = search.found
    matches = match_all(found)
    curve = curve_of(matches)
    threshold = curve.threshold(ONE)
    threshold = np.inf if threshold is None else threshold
    scores = [np.full(len(each.photo.boxes), -np.inf) for each in found]  # that each known face is found with
    for hit in np.flatnonzero(matches.face >= 0):
        scores[matches.photo[hit]][matches.face[hit]] = matches.scores[hit]
    missed = [~each.photo.ignored & (mine < threshold) for each, mine in zip(found, scores, strict=True)]
    counted = np.concatenate([np.empty(0, bool), *(~each.photo.ignored for each in found)])
    boxes = np.concatenate([np.empty((0, 4)), *(each.photo.boxes.astype(np.float64) for each in found)])[counted]
    wider = None
    if faces.name == "wider":
        wider = {name: wider_precision(found, mine) for name, mine in counted_faces(found, subsets).items()}
    return Figures(
        matches,
        curve,
        average_precision(curve),
        float(threshold),
        missed,
        by_height(boxes[:, 3] - boxes[:, 1], np.concatenate([np.empty(0), *scores])[counted], curve),
        point_errors(found, matches),
        wider,
        _fddb(faces, found),
    )


def _fddb(faces: FaceList, found: Sequence[Found]) -> Curve | None:
    if faces.ellipses is None:
        return None
    of_photo = dict(zip((photo.name for photo in faces.photos), faces.ellipses, strict=True))
    return fddb.discrete_curve(found, [of_photo[each.photo.name] for each in found])


def summary(figures: Figures) -> dict[str, Any]:
    """All figures as one JSON object."""
    curve, points = figures.curve, figures.points
    return {
        "photos": curve.photos,
        "faces": curve.faces,
        "found": len(figures.matches.scores),
        "average_precision": figures.precision,
        "recall_at_false_alarms_per_photo": {f"{each:g}": curve.recall(each) for each in FALSE_ALARMS},
        "threshold_at_one": figures.threshold,
        "recall_by_height_px": [
            {
                "from": row.low,
                "below": row.high,
                "faces": row.faces,
                "recall": row.found[FALSE_ALARMS.index(ONE)] / row.faces,
                "recall_at_false_alarms_per_photo": {
                    f"{each:g}": found / row.faces for each, found in zip(FALSE_ALARMS, row.found, strict=True)
                },
            }
            for row in figures.sizes
        ],
        "points": None
        if points is None
        else {
            "faces": points.faces,
            "mean": points.mean,
            "median": points.median,
            "within": {f"{limit:g}": share for limit, share in points.within.items()},
            "by_point": points.points,
        },
        "wider": figures.wider,
        "fddb": None
        if figures.fddb is None
        else {"recall_at_false_alarms": {str(each): _at(figures.fddb, each) for each in fddb.FALSE_ALARMS}},
    }


def _at(curve: Curve, false_alarms: int) -> float:
    """Recall at so many false alarms in the whole set."""
    return curve.recall(false_alarms / curve.photos)
