"""Faces of photos that may lie on a side or on their head: three more turns are searched where no face is sure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.detectors.detector import FaceDetector
from data_prep.mtcnn.faces import Faces, Picture

TURNS = (0, 90, 180, 270)
"""Degrees clockwise by which a photo is turned."""
_LEAST_UP = np.cos(np.radians(45))  # of the direction from mouth to eyes: beyond, another turn is nearer to upright


class Turned(NamedTuple):
    """The faces of a photo, in pixels of the photo as it lies.

    Attributes:
        faces: the faces, whose landmarks follow the turn; the most certain first.
        turn: degrees clockwise after which the photo is upright.
    """

    faces: Faces
    turn: int


def detect_turned(detector: FaceDetector, images: Sequence[Picture]) -> list[Turned]:
    """The faces of each picture by the turn with the surest face; equals by the smaller turn.

    A picture with a face that is sure (`FaceDetector.sure`) and upright is searched once, as without turns.

    Args:
        detector: finds upright faces.
        images: uint8 [height, width, 3], RGB.
    """
    found = [Turned(faces, 0) for faces in detector.detect(images)]
    doubtful = [number for number, each in enumerate(found) if not _settled(each.faces, detector.sure)]
    for turn in TURNS[1:] if doubtful else ():
        lying = [np.ascontiguousarray(np.rot90(images[number], -turn // 90)) for number in doubtful]
        for number, faces in zip(doubtful, detector.detect(lying), strict=True):
            if faces.scores.max(initial=0) > found[number].faces.scores.max(initial=0):
                found[number] = Turned(_turned_back(faces, turn, *images[number].shape[:2]), turn)
    return found


def _settled(faces: Faces, sure: float) -> bool:
    """Whether a face is sure, and its landmarks, where known, say that it is upright."""
    eyes, mouth = faces.landmarks[:, :2].mean(1), faces.landmarks[:, 3:].mean(1)
    up = mouth - eyes  # y counts down
    with np.errstate(invalid="ignore", divide="ignore"):
        lies = up[:, 1] / np.linalg.norm(up, axis=1) < _LEAST_UP  # False where landmarks are not known
    return bool(((faces.scores >= sure) & ~lies).any())


def _turned_back(faces: Faces, turn: int, height: int, width: int) -> Faces:
    """Faces of a picture that was turned clockwise, in pixels of the picture before, whose size is given."""
    corners = _points_back(faces.boxes.reshape(-1, 2, 2), turn, height, width)  # edges: a pixel is 1 wide
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    return Faces(boxes, faces.scores, _points_back(faces.landmarks, turn, height - 1, width - 1))


def _points_back(points: NDArray[np.float32], turn: int, height: int, width: int) -> NDArray[np.float32]:
    """Points [n, k, 2]: x, y, in a picture of that size; the last centres of pixels are at a size less 1."""
    x, y = points[..., 0], points[..., 1]
    back = {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}[turn]
    return np.stack(back, -1)
