"""Shapes on the surface of a drawn head, projected all at once: a projection costs more than the drawing of a shape."""

from typing import NamedTuple

import numpy as np

from data_prep.drawn.canvas import Canvas, Color
from data_prep.drawn.head import Head, Points


class _Shape(NamedTuple):
    """A polygon, or where it has a width a line."""

    uv: Points
    above: float | Points
    color: Color
    width: float | None


class Sketch:
    """Polygons and lines on a head in the order in which they cover each other; lengths are in the head's units."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._shapes: list[_Shape] = []

    def fill(self, uv: Points, color: Color, above: float | Points = 0.0) -> None:
        """A polygon with corners [n, 2], `above` the surface."""
        self._shapes.append(_Shape(uv, above, color, None))

    def line(self, uv: Points, color: Color, width: float, above: float = 0.0) -> None:
        """A line along points [n, 2], `above` the surface."""
        self._shapes.append(_Shape(uv, above, color, width))

    def draw(self, canvas: Canvas) -> None:
        """Draw all shapes."""
        if not self._shapes:
            return
        above = np.concatenate([np.broadcast_to(shape.above, len(shape.uv)) for shape in self._shapes])
        points = self.head.on_face(np.concatenate([shape.uv for shape in self._shapes]), above)
        start = 0
        for shape in self._shapes:
            mine = points[start : start + len(shape.uv)]
            start += len(mine)
            if shape.width is None:
                canvas.fill(mine, shape.color)
            else:
                canvas.line(mine, shape.color, shape.width * self.head.unit_px)


def curve(u: Points, v: Points) -> Points:
    """Points [n, 2] from their coordinates [n]."""
    return np.array([u, v]).T


def band(u: Points, upper: Points, lower: Points) -> Points:
    """The polygon between two lines over the same `u`."""
    return np.array([np.concatenate([u, u[::-1]]), np.concatenate([upper, lower[::-1]])]).T


_ROUND = np.linspace(0, 2 * np.pi, 16, endpoint=False)
COS, SIN = np.cos(_ROUND), np.sin(_ROUND)


def ellipse(u: float, v: float, wide: float, high: float) -> Points:
    """An ellipse with two half axes as points [16, 2]."""
    return np.array([u + wide * COS, v + high * SIN]).T
