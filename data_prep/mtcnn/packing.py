"""Rectangles of many sizes on few canvases, by the skyline method (Jylänki: A Thousand Ways to Pack the Bin, 2010)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple


class Place(NamedTuple):
    """The place of a rectangle: number of the canvas, top and left in pixels."""

    canvas: int
    top: int
    left: int


class _Step(NamedTuple):
    """A horizontal piece of the skyline."""

    left: int
    right: int
    height: int


@dataclass
class Canvas:
    """A canvas that is filled from its top; `height` and `width` of the covered part grow with it."""

    max_height: int
    max_width: int
    height: int = 0
    width: int = 0
    _skyline: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._skyline = [_Step(0, self.max_width, 0)]

    def put(self, height: int, width: int) -> tuple[int, int] | None:
        """Top and left of the highest free place for a rectangle, which it then occupies; None if there is none."""
        best: tuple[int, int] | None = None
        for number, step in enumerate(self._skyline):
            right = step.left + width
            if right > self.max_width:
                break
            top = 0
            for other in islice(self._skyline, number, None):
                if other.left >= right:
                    break
                top = max(top, other.height)
            if top + height <= self.max_height and (best is None or top < best[0]):
                best = top, step.left
        if best is not None:
            self._cover(best[0] + height, best[1], best[1] + width)
        return best

    def _cover(self, bottom: int, left: int, right: int) -> None:
        steps = [_Step(left, right, bottom)]
        for step in self._skyline:
            if step.left < left:
                steps.append(_Step(step.left, min(step.right, left), step.height))
            if step.right > right:
                steps.append(_Step(max(step.left, right), step.right, step.height))
        self._skyline = sorted(steps)
        self.height = max(self.height, bottom)
        self.width = max(self.width, right)


def pack(sizes: Sequence[tuple[int, int]], max_height: int, max_width: int) -> tuple[list[Place], list[Canvas]]:
    """A place for each rectangle, the highest ones first.

    Args:
        sizes: height and width of each rectangle, within the limits.
        max_height: largest height of a canvas.
        max_width: largest width of a canvas.

    Returns:
        The place of each rectangle, and the canvases.
    """
    canvases: list[Canvas] = []
    places: dict[int, Place] = {}
    for number in sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True):
        height, width = sizes[number]
        if height > max_height or width > max_width:
            raise ValueError(f"a rectangle of {height}x{width} does not fit a canvas of {max_height}x{max_width}")
        places[number] = _put(canvases, height, width) or _open(canvases, max_height, max_width, height, width)
    return [places[number] for number in range(len(sizes))], canvases


def _put(canvases: list[Canvas], height: int, width: int) -> Place | None:
    for index, canvas in enumerate(canvases):
        if (found := canvas.put(height, width)) is not None:
            return Place(index, *found)
    return None


def _open(canvases: list[Canvas], max_height: int, max_width: int, height: int, width: int) -> Place:
    canvases.append(Canvas(max_height, max_width))
    canvases[-1].put(height, width)
    return Place(len(canvases) - 1, 0, 0)
