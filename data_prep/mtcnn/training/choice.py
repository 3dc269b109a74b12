"""Which regions of a photo a network learns from: negatives, parts, faces and landmark faces by their overlap.

The classes and their limits are those of the paper (section II.D): intersection over union with the nearest face below
0.3, from 0.4 to 0.65, and above 0.65. Regions are the detections of the networks before, and squares drawn around faces
and anywhere, whose sizes and shifts are those that the image pyramid leaves undecided: 0.8 to 1.25 times the face.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.overlap import covered, overlaps
from data_prep.mtcnn.training.frames import Floats
from data_prep.mtcnn.training.losses import FACE, LANDMARK, NEGATIVE, PART, SHARES

NEGATIVE_BELOW, PART_FROM, FACE_FROM = 0.3, 0.4, 0.65
_SIZES = (0.8, 1.25)  # of a square drawn around a face, in units of the face's sides
_SHIFT = 0.25  # largest, in units of the face's width and height
_NEAR_SIZES, _NEAR_SHIFT = (0.4, 1.6), 1.5  # of one drawn near a face, to miss it
_DRAWN = 6  # times as many squares as are wanted: most have another overlap
_LEAST_PX = 12  # side of the smallest negative


class Known(NamedTuple):
    """The faces of a photo as training takes them.

    Attributes:
        faces: [n, 4], those to be learnt.
        points: [n, 5, 2], theirs; NaN where unknown.
        ignored: [m, 4], boxes that are neither faces nor background.
    """

    faces: Floats
    points: Floats
    ignored: Floats

    @classmethod
    def of(cls, photo: AnnotatedPhoto, min_face_px: float) -> "Known":
        """The faces of a photo; those smaller than `min_face_px` are ignored."""
        boxes = photo.boxes.astype(np.float64)
        small = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) < min_face_px
        left_out = photo.ignored | small
        return cls(boxes[~left_out], photo.landmarks[~left_out].astype(np.float64), boxes[left_out])


class Chosen(NamedTuple):
    """Regions of a photo to learn from.

    Attributes:
        kind: int64 [n], numbers of `KINDS`.
        regions: [n, 4].
        face: int64 [n], number of the face that each is held against; -1 for negatives.
    """

    kind: NDArray[np.int64]
    regions: Floats
    face: NDArray[np.int64]


def wanted(crops: int, marks_all: bool = True) -> list[int]:
    """How many regions of each kind a photo gives at most, of `crops` in all.

    A photo in which not all faces are marked gives landmark faces alone, as CelebA's do in the paper (section III.A):
    what is no marked face may be another one there, and no background.
    """
    most = [max(1, crops * share // sum(SHARES)) for share in SHARES]
    return most if marks_all else [0] * LANDMARK + most[LANDMARK:]


def choose(
    known: Known,
    size: tuple[int, int],
    most: list[int],
    rng: np.random.Generator,
    found: Floats | None,
    least_px: float,
) -> Chosen:
    """The regions of a photo that a network learns from.

    Args:
        known: the photo's faces.
        size: its height and width.
        most: how many regions of each kind at most.
        rng: of the photo.
        found: [n, 4], what the networks before detected; None for P-Net, whose windows lie in the photo, and have whole
            pixels.
        least_px: side of the smallest face.
    """
    inside = found is None
    pool = np.empty((0, 4)) if found is None else found[rng.permutation(len(found))]
    chosen: list[tuple[int, Floats, NDArray[np.int64]]] = []
    near, anywhere = _near(known.faces, 2 * most[NEGATIVE], rng), _anywhere(size, most[NEGATIVE], rng, least_px)
    mixed = rng.permutation(np.concatenate([near, anywhere]))
    negatives = _within(np.concatenate([pool, mixed]), size, inside)
    chosen.append((NEGATIVE, *_first(negatives[is_negative(negatives, known)], None, most[NEGATIVE])))
    if len(known.faces):
        drawn = _within(np.concatenate([pool, _around(known.faces, _DRAWN * sum(most[PART:]), rng)]), size, inside)
        overlap = overlaps(drawn, known.faces)
        face, best = overlap.argmax(1), overlap.max(1)
        is_face = best > FACE_FROM
        has_points = np.isfinite(known.points.sum((1, 2)))[face]
        # What the faces leave goes to the landmark faces first, which learn another task.
        order = np.where(is_face)[0]
        later = np.concatenate([order[most[FACE] :], order[: most[FACE]]])
        for kind, rows in (
            (PART, np.where((best >= PART_FROM) & (best <= FACE_FROM))[0]),
            (FACE, order),
            (LANDMARK, later[has_points[later]]),
        ):
            chosen.append((kind, *_first(drawn[rows], face[rows], most[kind])))
    kinds = np.concatenate([np.full(len(regions), kind, np.int64) for kind, regions, _ in chosen])
    return Chosen(
        kinds, np.concatenate([regions for _, regions, _ in chosen]), np.concatenate([face for *_, face in chosen])
    )


def is_negative(regions: Floats, known: Known) -> NDArray[np.bool_]:
    """Which regions [n, 4] are background: little overlap with any face, and little of them in what is ignored."""
    best, hidden = overlaps(regions, known.faces), covered(regions, known.ignored)
    found: NDArray[np.bool_] = np.maximum(best.max(1, initial=0), hidden.max(1, initial=0)) < NEGATIVE_BELOW
    return found


def _first(regions: Floats, face: NDArray[np.int64] | None, most: int) -> tuple[Floats, NDArray[np.int64]]:
    regions = regions[:most]
    return regions, np.full(len(regions), -1, np.int64) if face is None else face[:most].astype(np.int64)


def _within(regions: Floats, size: tuple[int, int], inside: bool) -> Floats:
    """Regions with a pixel in a photo of `size`; with `inside` those that lie in it, to whole pixels."""
    height, width = size
    if not inside:
        left, top, right, bottom = regions.T
        seen: NDArray[np.bool_] = (
            (left < width - 1) & (top < height - 1) & (right >= 2) & (bottom >= 2) & (right - left >= 2)
        )
        visible: Floats = regions[seen]
        return visible
    start = np.floor(regions[:, :2])
    side = np.maximum(np.rint(regions[:, 2:3] - regions[:, :1]), 1)
    whole: Floats = np.concatenate([start, start + side], 1)
    lies_in: Floats = whole[(start >= 0).all(1) & (whole[:, 2] <= width) & (whole[:, 3] <= height)]
    return lies_in


def _squares(centres: Floats, sides: Floats) -> Floats:
    half = sides[:, None] / 2
    return np.concatenate([centres - half, centres + half], 1)


def _around(faces: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Squares about faces, [count, 4], that show most of them."""
    of = faces[rng.integers(0, len(faces), count)]
    sides = of[:, 2:] - of[:, :2]
    low, high = sides.min(1) * _SIZES[0], sides.max(1) * _SIZES[1]
    shift = rng.uniform(-_SHIFT, _SHIFT, (count, 2)) * sides
    return _squares((of[:, :2] + of[:, 2:]) / 2 + shift, low * (high / low) ** rng.uniform(size=count))


def _near(faces: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Squares near faces, [count, 4], that may show a part of them."""
    if not len(faces):
        return np.empty((0, 4))
    of = faces[rng.integers(0, len(faces), count)]
    sides = of[:, 2:] - of[:, :2]
    side = sides.max(1) * rng.uniform(*_NEAR_SIZES, count)
    return _squares((of[:, :2] + of[:, 2:]) / 2 + rng.uniform(-_NEAR_SHIFT, _NEAR_SHIFT, (count, 2)) * sides, side)


def _anywhere(size: tuple[int, int], count: int, rng: np.random.Generator, least_px: float) -> Floats:
    """Squares anywhere in a photo, [count, 4], as many of small sizes as of large ones."""
    height, width = size
    largest = min(height, width)
    smallest = min(max(least_px, _LEAST_PX), largest)
    side = np.floor(smallest * (largest / smallest) ** rng.uniform(size=count))
    left, top = rng.uniform(size=count) * (width - side), rng.uniform(size=count) * (height - side)
    return np.stack([left, top, left + side, top + side], 1)
