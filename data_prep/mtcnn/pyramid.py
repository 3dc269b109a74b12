"""The scales at which P-Net looks at a picture, and the pieces of canvas that they take."""

from collections.abc import Iterator
from typing import NamedTuple

CELL = 12  # pixels: the side of P-Net's window
STRIDE = 2  # pixels from one window to the next


class Piece(NamedTuple):
    """A part of a picture at one scale that is looked at in one go.

    Attributes:
        picture: number of the picture.
        level: number of the level in the picture, from the finest.
        scale: of the level; 1 is the picture's own size.
        size: height and width of the whole level, pixels.
        top: first row of the piece in the level, even.
        left: first column, even.
        height: of the piece, even; it may reach a row over the level's edge.
        width: likewise.
    """

    picture: int
    level: int
    scale: float
    size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


def scales(height: int, width: int, min_face_px: float, factor: float) -> Iterator[float]:
    """Scales from the one at which the smallest face fills a window to the one at which the picture does."""
    scale = CELL / min_face_px
    shorter = min(height, width) * scale
    while shorter >= CELL:
        yield scale
        scale *= factor
        shorter *= factor


def pieces(
    picture: int, shape: tuple[int, int], min_face_px: float, factor: float, max_height: int, max_width: int
) -> Iterator[Piece]:
    """All levels of a picture of `shape` (height, width), cut so that no piece is above the limits.

    Neighbours overlap by what two windows share, so that every window is in exactly one piece.
    """
    for level, scale in enumerate(scales(*shape, min_face_px, factor)):
        size = int(shape[0] * scale + 1), int(shape[1] * scale + 1)
        for top, height in _cuts(size[0], max_height):
            for left, width in _cuts(size[1], max_width):
                yield Piece(picture, level, scale, size, top, left, height, width)


def _cuts(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Start and length, even numbers, of pieces that cover `length`."""
    length += length % 2
    start = 0
    while length - start > longest:
        yield start, longest
        start += longest - (CELL - STRIDE)
    yield start, length - start
