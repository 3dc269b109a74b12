"""Pictures with boxes and points drawn on them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.faces import Picture

GREEN, RED, YELLOW, BLUE = (0, 200, 0), (255, 0, 0), (235, 190, 0), (40, 120, 255)


def mark_faces(
    picture: Picture,
    boxes: NDArray[np.floating],
    points: NDArray[np.floating] | None = None,
    color: tuple[int, int, int] = GREEN,
) -> Picture:
    """A copy of a picture [H, W, 3], RGB, with boxes [n, 4] and points [n, k, 2]; unknown points are left out."""
    marked, width = np.ascontiguousarray(picture).copy(), line_width(picture)
    for left, top, right, bottom in np.round(boxes).astype(int).tolist():
        cv2.rectangle(marked, (left, top), (right, bottom), color, width, cv2.LINE_AA)
    if points is not None:
        for x, y in points.reshape(-1, 2).tolist():
            if np.isfinite(x + y):
                cv2.circle(marked, (round(x), round(y)), 2 * width, RED, -1, cv2.LINE_AA)
    return marked


def line_width(picture: Picture) -> int:
    """Width of lines in pixels that suits a picture [H, W, 3]."""
    return int(max(1, round(max(picture.shape[:2]) / 400)))
