"""Canvases for networks of a fixed size, or of multiples of 32: a picture in the upper left corner, black beside it."""

from typing import NamedTuple

import cv2
import numpy as np

from data_prep.mtcnn.faces import Picture

CELL_PX = 32  # sides of a canvas are multiples of the widest stride


class Fit(NamedTuple):
    """The place of a picture on its canvas.

    Attributes:
        canvas: height and width of the canvas in pixels.
        size: height and width of the picture on it.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]


def fit(height: int, width: int, side: tuple[int, int] | None, most_px: int) -> Fit:
    """The place of a picture.

    Args:
        height: of the picture in pixels.
        width: likewise.
        side: height and width of the canvas, which the picture fills in one direction; None: the network takes any.
        most_px: then the longest side of a picture, above which it is shrunk; none is enlarged.
    """
    scale = min(1.0, most_px / max(height, width)) if side is None else min(side[0] / height, side[1] / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = side or (-(-size[0] // CELL_PX) * CELL_PX, -(-size[1] // CELL_PX) * CELL_PX)
    return Fit(canvas, (min(size[0], canvas[0]), min(size[1], canvas[1])))


def draw(pictures: list[Picture], fits: list[Fit]) -> Picture:
    """Canvases [n, H, W, 3] of pictures whose canvases have one size."""
    canvases = np.zeros((len(pictures), *fits[0].canvas, 3), np.uint8)
    for canvas, picture, (_, (height, width)) in zip(canvases, pictures, fits, strict=True):
        shrinks = height < picture.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        canvas[:height, :width] = (
            picture if picture.shape[:2] == (height, width) else cv2.resize(picture, (width, height), interpolation=how)
        )
    return canvases
