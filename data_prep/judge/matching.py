"""Which found faces are right: each known face is found once, by the most certain that overlaps it by half."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.overlap import covered, overlaps
from data_prep.judge.search import Found

HALF = 0.5
"""Least intersection over union of a found and a known face that are the same."""
WRONG = -1
"""In place of the number of a known face: none of them."""
NEITHER = -2
"""In place of the number of a known face: one that is ignored."""


@dataclass(frozen=True, slots=True)
class Matches:
    """All found faces of a set, the most certain first.

    Attributes:
        scores: [D].
        photo: number of the photo, [D].
        place: number of the face among those found in its photo, [D].
        face: number in its photo of the known face that it is; `WRONG`, `NEITHER`: [D].
        faces: number of known faces that count.
        photos: number of photos.
    """

    scores: NDArray[np.float64]
    photo: NDArray[np.int64]
    place: NDArray[np.int64]
    face: NDArray[np.int64]
    faces: int
    photos: int


def match_all(found: Sequence[Found]) -> Matches:
    """Match the faces found in each photo."""
    parts = [match(each.faces.boxes, each.faces.scores, each.photo.boxes, each.photo.ignored) for each in found]
    scores = np.concatenate([np.empty(0), *(each.faces.scores for each in found)]).astype(np.float64)
    counts = [len(part) for part in parts]
    photo = np.repeat(np.arange(len(found)), counts)
    place = np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)])
    face = np.concatenate([np.empty(0, np.int64), *parts])
    order = np.argsort(-scores, kind="stable")
    total = int(sum((~each.photo.ignored).sum() for each in found))
    return Matches(scores[order], photo[order], place[order], face[order], total, len(found))


def match(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], known: NDArray[np.floating], ignored: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Number of the known face [m, 4] that each found one [n, 4] is, [n]; else `WRONG` or `NEITHER`.

    In the order of certainty each takes the free face that it overlaps most, if by half. One that takes none is neither
    right nor wrong where it overlaps an ignored face by half, or lies in one by half of its own area.
    """
    pair = boxes.astype(np.float64), known.astype(np.float64)
    shared = overlaps(*pair)
    near_ignored = ((shared >= HALF) | (covered(*pair) >= HALF))[:, ignored].any(1)
    shared[:, ignored] = 0
    answer = np.where(near_ignored, NEITHER, WRONG).astype(np.int64)
    if not shared.size:
        return answer
    for number in np.argsort(-scores.astype(np.float64), kind="stable"):
        best = int(shared[number].argmax())
        if shared[number, best] >= HALF:
            answer[number] = best
            shared[:, best] = 0
    return answer
