"""Which found faces are right: each known face is found once, by the most certain that overlaps it by half."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.judge.overlap import areas, intersections, overlaps
from data_prep.judge.search import Found
from data_prep.mtcnn.faces import Faces

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
    parts = [match(each.photo, each.faces) for each in found]
    scores = np.concatenate([np.empty(0), *(each.faces.scores for each in found)]).astype(np.float64)
    counts = [len(part) for part in parts]
    photo = np.repeat(np.arange(len(found)), counts)
    place = np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)])
    face = np.concatenate([np.empty(0, np.int64), *parts])
    order = np.argsort(-scores, kind="stable")
    total = int(sum((~each.photo.ignored).sum() for each in found))
    return Matches(scores[order], photo[order], place[order], face[order], total, len(found))


def match(photo: AnnotatedPhoto, faces: Faces) -> NDArray[np.int64]:
    """Number of the known face that each found one is, [n]; else `WRONG` or `NEITHER`.

    In the order of certainty each takes the free face that it overlaps most, if by half. One that takes none is neither
    right nor wrong where it overlaps an ignored face by half, or lies in one by half of its own area.
    """
    boxes = faces.boxes.astype(np.float64)
    known = photo.boxes.astype(np.float64)
    shared = overlaps(boxes, known)
    inside = intersections(boxes, known) / np.maximum(areas(boxes), 1e-9)[:, None]
    near_ignored = ((shared >= HALF) | (inside >= HALF))[:, photo.ignored].any(1)
    shared[:, photo.ignored] = 0
    answer = np.where(near_ignored, NEITHER, WRONG).astype(np.int64)
    if not shared.size:
        return answer
    for number in np.argsort(-faces.scores.astype(np.float64), kind="stable"):
        best = int(shared[number].argmax())
        if shared[number, best] >= HALF:
            answer[number] = best
            shared[:, best] = 0
    return answer
