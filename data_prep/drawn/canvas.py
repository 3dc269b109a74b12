"""The piece of a photo around a head that is drawn on, at a finer scale where the head is small."""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.faces import Picture

Color = NDArray[np.float64]
"""Three grey levels, 0..255."""
_SHIFT = 4  # binary places of the coordinates that OpenCV draws at


class Canvas:
    """A piece of a photo, `fine` times enlarged; what was drawn on it is put back by `finish`.

    Attributes:
        pixels: uint8 [h, w, 3] of the enlarged piece.
        solid: uint8 [h, w]: where light and shade of the head count, 0 elsewhere.
    """

    def __init__(self, photo: Picture, left: int, top: int, right: int, bottom: int, fine: int) -> None:
        height, width = photo.shape[:2]
        self._photo = photo
        self._left, self._top = max(0, left), max(0, top)
        self._right, self._bottom = min(width, right), min(height, bottom)
        piece = photo[self._top : self._bottom, self._left : self._right]
        self._fine = fine
        # Each pixel becomes equal ones, whose mean is the pixel again: what is not drawn on does not change.
        self.pixels = piece.repeat(fine, 0).repeat(fine, 1) if fine > 1 else piece.copy()
        self.solid = np.zeros(self.pixels.shape[:2], np.uint8)

    @property
    def empty(self) -> bool:
        """Whether no pixel of the photo is in it."""
        return bool(self._right <= self._left or self._bottom <= self._top)

    def fill(self, points: NDArray[np.float64], color: Color, solid: bool = False) -> None:
        """Fill a polygon [n, 2] whose corners are given in pixels of the photo, and shade it where it is `solid`."""
        corners = [self._fixed(points)]
        cv2.fillPoly(self.pixels, corners, color.tolist(), cv2.LINE_AA, _SHIFT)
        if solid:
            cv2.fillPoly(self.solid, corners, 1, cv2.LINE_8, _SHIFT)

    def line(self, points: NDArray[np.float64], color: Color, width_px: float) -> None:
        """Draw a line [n, 2]; `width_px` in pixels of the photo."""
        thickness = max(1, round(width_px * self._fine))
        cv2.polylines(self.pixels, [self._fixed(points)], False, color.tolist(), thickness, cv2.LINE_AA, _SHIFT)

    def shade(self, light: NDArray[np.float32]) -> None:
        """Multiply what is solid by `light` [m, m] or [m, m, 3], spread over the canvas."""
        height, width = self.pixels.shape[:2]
        spread = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
        levels = cv2.convertScaleAbs(spread, alpha=128)  # 128 stands for 1
        if levels.ndim == 2:
            levels = cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR)
        lit = cv2.multiply(self.pixels, levels, scale=1 / 128)
        cv2.copyTo(lit, self.solid, self.pixels)

    def grid(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Coordinates x [m] and y [m] in the photo of `count` points evenly over the canvas."""
        at = (np.arange(count, dtype=np.float32) + 0.5) / count
        return self._left + at * (self._right - self._left), self._top + at * (self._bottom - self._top)

    def finish(self) -> None:
        """Put the drawing into the photo."""
        size = self._right - self._left, self._bottom - self._top
        piece = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA) if self._fine > 1 else self.pixels
        self._photo[self._top : self._bottom, self._left : self._right] = piece

    def _fixed(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        inside = (points - (self._left, self._top)) * self._fine - 0.5
        return np.round(inside.clip(-9999, 9999) * (1 << _SHIFT)).astype(np.int32)
