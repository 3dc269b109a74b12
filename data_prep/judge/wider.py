"""WIDER FACE's average precision, as the evaluation code of its authors computes it.

Source: `wider_eval.m`, `norm_score.m`, `evaluation.m`, `boxoverlap.m` of the set's `eval_tools`. Scores are mapped to
0..1 over the whole set. Boxes end on their last pixel, so that 1 is added to widths and heights. A found face whose
largest overlap is with a face that does not count in the subset is left out; every other one is a proposal, the second
of a face too. Precision and recall are taken at 1,000 thresholds, over photos with a known face and a found one. The
area under the curve is that of `data_prep.judge.curves.area`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.overlap import overlaps
from data_prep.judge.curves import area
from data_prep.judge.matching import HALF
from data_prep.judge.search import Found

_THRESHOLDS = 1000
_LAST_PIXEL = 1.0


def wider_precision(found: Sequence[Found], counted: Sequence[NDArray[np.bool_]]) -> float:
    """Average precision over the faces that count; not a number where there are none.

    Args:
        found: of each photo.
        counted: bool [n] of each photo's n known faces: those of the subset.
    """
    faces = int(sum(each.sum() for each in counted))
    if not faces:
        return float("nan")
    scores = np.concatenate([np.empty(0), *(each.faces.scores for each in found)]).astype(np.float64)
    least, span = (scores.min(), np.ptp(scores)) if len(scores) else (0.0, 1.0)
    thresholds = 1 - np.arange(1, _THRESHOLDS + 1) / _THRESHOLDS
    proposals, recalled = np.zeros(_THRESHOLDS), np.zeros(_THRESHOLDS)
    for each, mine in zip(found, counted, strict=True):
        if not len(mine) or not len(each.faces.scores):
            continue
        order = np.argsort(-each.faces.scores.astype(np.float64), kind="stable")
        normal = (each.faces.scores[order].astype(np.float64) - least) / (span or 1.0)
        proposed, found_so_far = _photo(each, order, mine)
        # Faces at or above each threshold, of those in falling order.
        count = np.searchsorted(-normal, -thresholds, side="right")
        proposals += np.concatenate([[0], proposed])[count]
        recalled += np.concatenate([[0], found_so_far])[count]
    precision = recalled / np.maximum(proposals, 1)
    return area(np.concatenate([[0.0], recalled / faces]), precision)


def _photo(
    found: Found, order: NDArray[np.int64], mine: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Proposals and counted faces found, [n] each, among the first 1 .. n found faces of a photo."""
    shared = overlaps(found.faces.boxes[order].astype(np.float64), found.photo.boxes.astype(np.float64), _LAST_PIXEL)
    best = shared.argmax(1)
    hit = shared.max(1) >= HALF
    counts = mine[best]
    first = np.zeros(len(order), bool)
    first[np.unique(np.where(hit & counts, best, -1), return_index=True)[1]] = True
    return np.cumsum(~(hit & ~counts)), np.cumsum(first & hit & counts)
