"""From the faces of a picture to its crops: which faces, and how they are cut out.

By landmarks: the similarity transform that brings the five points nearest to the template (Umeyama), bilinear, black
where the picture ends. By box: the square around the box with a margin, as older sets were made.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.faces import Faces, Picture
from dist_train.evaluate.alignment import align_face

Choice = Literal["largest", "surest", "central", "all"]


def choose(faces: Faces, choice: Choice, height: int, width: int) -> list[int]:
    """Which of a picture's faces to keep.

    Args:
        faces: of the picture.
        choice: `largest` box, `surest` by score, most `central` (nearest centre of box to the picture's centre), or
            `all`; equals are decided by score.
        height: of the picture, pixels.
        width: likewise.

    Returns:
        Numbers of the faces, for `all` the surest first; nothing where there is no face.
    """
    if choice == "all" or not len(faces.boxes):
        return list(range(len(faces.boxes)))
    if choice == "surest":
        return [int(faces.scores.argmax())]
    start, stop = faces.boxes[:, :2], faces.boxes[:, 2:]
    if choice == "largest":
        return [int((stop - start).prod(1).argmax())]
    away = (start + stop) / 2 - np.array([width, height]) / 2
    return [int((away**2).sum(1).argmin())]


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
        margin: on each side, as a share of the box's longer side.

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


def _resample(picture: Picture, x: float, y: float, side: float, image_size: int) -> Picture:
    """The square of `side` pixels about (x, y), made `image_size` pixels wide."""
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
