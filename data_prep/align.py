"""Crops of faces: the rules that choose among the faces of a picture, and the ways to cut one out.

By landmarks: the similarity transform that brings the five points nearest to the template (Umeyama), bilinear, black
where the picture ends. By box: the square around the box with a margin, as older sets were made.
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.faces import Faces, Picture
from dist_train.data.alignment import align_face

_MOST_PX = 4096  # side of a square that is made in memory, 50 MB; what is larger is halved first

SingleChoice = Literal["main", "largest", "surest", "central"]
Choice = Literal[SingleChoice, "all"]


class RunnerUp(NamedTuple):
    """The face that would have been chosen if the chosen one were not there.

    Attributes:
        number: its number among the picture's faces.
        lead: by how much the chosen face was better, in areas of the chosen face's box (for `surest` in score). Near
            0 both faces were nearly alike, and a slightly different box would have reversed the choice.
    """

    number: int
    lead: float


def choose(faces: Faces, choice: Choice, height: int, width: int) -> list[int]:
    """Numbers of the faces of a picture that are kept.

    `main` is the face with the largest box, where distance from the picture's centre counts against it: area minus
    twice the squared distance of the box's centre from the picture's. So InsightFace chooses one face of several
    (python-package, `RetinaFace.detect` and `SCRFD.detect` with `max_num=1`), and before it FaceNet's alignment of LFW
    and CASIA-WebFace (davidsandberg/facenet, `align_dataset_mtcnn.py`). The choice does not depend on the scale.

    Args:
        faces: all faces of the picture.
        choice: `main`, `largest` box, `surest` by score, most `central` (nearest centre of box to the picture's
            centre), or `all`; equals are decided by score.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        Numbers of the faces; for `all` the most certain first, and none where the picture has no face.
    """
    if choice == "all" or len(faces.boxes) < 2:
        return list(range(len(faces.boxes)))
    return [int(_merits(faces, choice, height, width).argmax())]


def runner_up(faces: Faces, choice: Choice, height: int, width: int) -> RunnerUp | None:
    """The second best face by a rule, arguments as `choose`; None for `all` and with fewer than two faces."""
    if choice == "all" or len(faces.boxes) < 2:
        return None
    merits = _merits(faces, choice, height, width)
    best, second = np.argsort(-merits, kind="stable")[:2].tolist()
    unit = 1.0 if choice == "surest" else max(_areas(faces)[best], 1.0)
    return RunnerUp(second, float((merits[best] - merits[second]) / unit))


def _merits(faces: Faces, choice: SingleChoice, height: int, width: int) -> NDArray[np.float64]:
    """Merits of the faces by a rule, float64 [n]; the face with the highest is chosen."""
    if choice == "surest":
        return faces.scores.astype(np.float64)
    if choice == "largest":
        return _areas(faces)
    centres = (faces.boxes[:, :2].astype(np.float64) + faces.boxes[:, 2:]) / 2
    away: NDArray[np.float64] = ((centres - np.array([width, height]) / 2) ** 2).sum(1)
    return -away if choice == "central" else _areas(faces) - 2 * away


def _areas(faces: Faces) -> NDArray[np.float64]:
    """Areas of the boxes in square pixels, float64 [n]."""
    sides = faces.boxes[:, 2:].astype(np.float64) - faces.boxes[:, :2]
    areas: NDArray[np.float64] = sides.prod(1)
    return areas


def crop_landmarks(picture: Picture, landmarks: NDArray[np.floating], image_size: int) -> Picture:
    """The aligned face [image_size, image_size, 3] at `landmarks` [5, 2] of a picture [H, W, 3]."""
    aligned: Picture = align_face(picture, landmarks.astype(np.float64), image_size)
    return aligned


def crop_box(picture: Picture, box: NDArray[np.floating], image_size: int, margin: float) -> Picture:
    """The square about a box's centre.

    Args:
        picture: [H, W, 3].
        box: [4], left, top, right, bottom in pixels.
        image_size: side of the result in pixels.
        margin: width of the margin on each side, as a share of the box's longer side.

    Returns:
        [image_size, image_size, 3], black where the picture ends.
    """
    left, top, right, bottom = (float(side) for side in box)
    side = max(right - left, bottom - top, 1.0) * (1 + 2 * margin)
    return _resample(picture, (left + right) / 2, (top + bottom) / 2, side, image_size)


def crop_centre(picture: Picture, image_size: int) -> Picture:
    """The largest centred square of a picture without a face, resized."""
    height, width = picture.shape[:2]
    return _resample(picture, width / 2, height / 2, min(height, width), image_size)


def encode_crop(picture: Picture, jpeg_quality: int) -> bytes:
    """A crop [S, S, 3], RGB, as a JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    return data.tobytes()


def _resample(picture: Picture, x: float, y: float, side: float, image_size: int) -> Picture:
    """The square of `side` pixels about (x, y), made `image_size` pixels wide."""
    while side > _MOST_PX:
        height, width = picture.shape[:2]
        half = (max(1, width // 2), max(1, height // 2))
        picture = np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)
        x, y, side = x / 2, y / 2, side / 2
    pixels = max(1, round(side))
    corner = round(x - pixels / 2), round(y - pixels / 2)
    square = np.zeros((pixels, pixels, 3), np.uint8)
    height, width = picture.shape[:2]
    left, top = max(corner[0], 0), max(corner[1], 0)
    right, bottom = min(corner[0] + pixels, width), min(corner[1] + pixels, height)
    if right > left and bottom > top:
        square[top - corner[1] : bottom - corner[1], left - corner[0] : right - corner[0]] = picture[
            top:bottom, left:right
        ]
    interpolation = cv2.INTER_AREA if pixels > image_size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (image_size, image_size), interpolation=interpolation), np.uint8)
