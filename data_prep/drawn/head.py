"""The shape of a drawn head: proportions, turn, and where points of the face come to lie in a picture.

Units: the chin is at v = 1, the eyes near v = -0.12, the top of the skull near v = -1.2; u goes to the viewer's right.
The proportions are those of the five-point template (`dist_train.data.alignment`), varied.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

FOREHEAD = -0.74  # v of the top of a face's box
NOSE_RISE = 0.16  # of its tip, above the face
_KNOTS = np.array([-1.2, -1.1, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.8, 0.93, 1.0])
_HALVES = np.array([0.05, 0.4, 0.62, 0.75, 0.79, 0.78, 0.75, 0.64, 0.49, 0.31, 0.05])
_ROWS = np.concatenate([_KNOTS[:1], np.linspace(-1.15, 0.95, 19), np.array([0.98, 1.0])])
_WIDTHS = np.convolve(np.pad(np.interp(_ROWS, _KNOTS, _HALVES), 1, "edge"), (0.2, 0.6, 0.2), "valid")
_DEPTH = 0.75  # of the face in front of the ears


@dataclass(frozen=True, slots=True)
class Head:
    """A head.

    Attributes:
        center: x, y in the picture of the middle of the head, in pixels.
        unit_px: pixels of a unit.
        turn: [3, 3], from the head's axes (right, down, to the viewer) to the picture's.
        yaw: in radians; above 0 the nose points to the viewer's right.
        rows: v of the outline's rows, [n].
        widths: half of the outline's width in each row, [n].
        eyes: u and v of the right eye; the left one mirrors it.
        nose: v of its tip.
        mouth: half its width, and v.
    """

    center: Points
    unit_px: float
    turn: Points
    yaw: float
    rows: Points
    widths: Points
    eyes: tuple[float, float]
    nose: float
    mouth: tuple[float, float]

    @classmethod
    def random(cls, random: np.random.Generator, height_px: float) -> Self:
        """A head at 0, 0, whose face is so many pixels high if it is not turned."""
        wide, jaw, chin, brow = random.normal(1, (0.06, 0.08, 0.2, 0.04)).clip(0.75, 1.3)
        widths = _WIDTHS * wide * np.interp(_ROWS, (-1, -0.3, 0.3, 0.8, 1), (brow, 1, 1, jaw, jaw * chin))
        large = random.random() < 0.15
        yaw = random.uniform(-1.05, 1.05) if large else random.normal(0, 0.3)
        pitch = random.normal(0.02, 0.16)
        roll = random.normal(0, 0.3 if random.random() < 0.2 else 0.12)
        eyes = random.normal(0.335, 0.02), random.normal(-0.12, 0.03)
        nose = random.normal(0.27, 0.035)
        return cls(
            np.zeros(2),
            height_px / (1 - FOREHEAD),
            _turn(yaw, float(np.clip(pitch, -0.45, 0.45)), float(np.clip(roll, -0.7, 0.7))),
            float(yaw),
            _ROWS,
            widths,
            eyes,
            nose,
            (float(random.normal(0.27, 0.03)), nose + float(random.normal(0.35, 0.025))),
        )

    def at(self, center: Points) -> Self:
        """The same head elsewhere."""
        return type(self)(
            center, self.unit_px, self.turn, self.yaw, self.rows, self.widths, self.eyes, self.nose, self.mouth
        )

    def half_width(self, v: Points) -> Points:
        """Half of the head's width at heights `v`."""
        return np.interp(v, self.rows, self.widths)

    def surface(self, uv: Points, above: float | Points = 0.0) -> Points:
        """Points [n, 2] of the face as points [n, 3] in space, `above` its surface: one height, or [n]."""
        u, v = uv.T
        along = np.maximum(1 - (v / 1.35) ** 2, 0)
        across = np.maximum(1 - (u / np.maximum(self.half_width(v), 0.05)) ** 2, 0)
        return np.array([u, v, _DEPTH * np.sqrt(along * across) + above]).T

    def seen(self, points: Points) -> Points:
        """Points [n, 3] in space as points [n, 2] in the picture, in pixels."""
        return self.center + self.unit_px * (points @ self.turn[:2].T)

    def on_face(self, uv: Points, above: float | Points = 0.0) -> Points:
        """Points [n, 2] of the face as points [n, 2] in the picture, in pixels."""
        return self.seen(self.surface(uv, above))

    def outline(self, first: float, last: float, grow: float = 1.0, whole: bool = True) -> Points:
        """The outline of the head between two heights, in pixels: [n, 2].

        Args:
            first: upper v.
            last: lower v.
            grow: how many times wider it is.
            whole: with the side of the head; else the face alone, which ends at the near ear.
        """
        v = np.concatenate([[first], self.rows[(self.rows > first) & (self.rows < last)], [last]])
        half = self.half_width(v)
        depth = _DEPTH * np.sqrt(np.maximum(1 - (v / 1.35) ** 2, 0))
        # The contour of an ellipse with the axes `half` and `depth`, seen from a direction turned by `yaw`.
        reach = np.hypot(half * np.cos(self.yaw), depth * np.sin(self.yaw))
        near = half * np.cos(self.yaw)
        right, left = (reach, near) if self.yaw >= 0 else (near, reach)
        if whole:
            right = left = np.maximum(right, left)
        # Back into the head's own axes, in its middle plane, so that pitch and roll turn it like all else.
        x = np.concatenate([right, -left[::-1]]) * grow
        rows = np.concatenate([v, v[::-1]])
        return self.center + self.unit_px * (np.array([x, rows]).T @ self._unyawed()[:2, :2].T)

    def _unyawed(self) -> Points:
        """The turn without its yaw."""
        back = np.array([[np.cos(self.yaw), 0, -np.sin(self.yaw)], [0, 1, 0], [np.sin(self.yaw), 0, np.cos(self.yaw)]])
        return np.asarray(self.turn @ back, np.float64)

    def five_points(self) -> Points:
        """Eyes, nose, corners of the mouth in the order of `data_prep.mtcnn.faces.Faces`, [5, 2] in pixels."""
        (u, v), (half, mouth) = self.eyes, self.mouth
        flat = np.array([[-u, v], [u, v], [0.0, self.nose], [-half, mouth], [half, mouth]])
        return self.on_face(flat, np.array([0.0, 0.0, NOSE_RISE, 0.03, 0.03]))

    def box(self) -> Points:
        """Left, top, right, bottom of the face, from forehead to chin and from ear to ear, in pixels."""
        outline = self.outline(FOREHEAD, 1.0, whole=False)
        return np.concatenate([outline.min(0), outline.max(0)])


def _turn(yaw: float, pitch: float, roll: float) -> Points:
    """The turn by an angle about each axis: first yaw, then pitch, then roll."""
    cos, sin = np.cos, np.sin
    about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, cos(pitch), sin(pitch)], [0, -sin(pitch), cos(pitch)]])
    about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y, np.float64)
