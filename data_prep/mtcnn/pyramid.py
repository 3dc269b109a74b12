"""The image pyramid: the scales of a picture for P-Net, and the pieces of canvas that each scale takes."""

from collections.abc import Iterator
from typing import NamedTuple

CELL = 12  # pixels: the side of P-Net's window
STRIDE = 2  # pixels from one window to the next


class Piece(NamedTuple):
    """A part of a picture at one scale, which lies on a canvas as a whole.

    Attributes:
        picture: number of the picture.
        level: number of the level in the picture, the finest first.
        scale: scale of the level; 1 is the picture's own size.
        size: height and width of the whole level, pixels.
        top: first row of the piece in the level, even.
        left: first column of the piece in the level, even.
        height: height of the piece, even; may be one row beyond the level's edge.
        width: width of the piece, even; may be one column beyond the level's edge.
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
    """Pieces of all levels of a picture of `shape` (height, width), within the limits.

    Neighbours overlap by the pixels that two windows share, so that every window is in exactly one piece.
    """
    for level, scale in enumerate(scales(*shape, min_face_px, factor)):
        size = int(shape[0] * scale + 1), int(shape[1] * scale + 1)
        for top, height in _cuts(size[0], max_height):
            for left, width in _cuts(size[1], max_width):
                yield Piece(picture, level, scale, size, top, left, height, width)


def _cuts(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths, even numbers, of the pieces that cover `length`."""
    length += length % 2
    start = 0
    while length - start > longest:
        yield start, longest
        start += longest - (CELL - STRIDE)
    yield start, length - start
