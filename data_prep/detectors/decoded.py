"""Faces as the heads of one-stage networks state them, and the kind of such a head."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.faces import Picture

STRIDES = (8, 16, 32)
"""Pixels of the input between two cells of each of a network's three grids."""

Values = NDArray[np.float64]


class Decoded(NamedTuple):
    """Faces in pixels of the network's input, before suppression.

    Attributes:
        boxes: [n, 4]: left, top, right, bottom.
        scores: [n], 0 to 1.
        points: [n, 5, 2]; NaN where the network has none.
    """

    boxes: Values
    scores: Values
    points: Values


class Head(Protocol):
    """The convention of a kind of network: what it takes, and what its outputs mean.

    Attributes:
        name: of the kind.
        overlap: intersection over union above which the less certain of two faces is dropped, as its authors do.
        has_points: whether the network finds landmarks.
        sure: see `FaceDetector`.
    """

    name: str
    overlap: float
    has_points: bool
    sure: float

    def values(self, pictures: Picture) -> NDArray[np.float32]:
        """The network's input [B, 3, H, W] of pictures [B, H, W, 3], red first."""
        ...

    def decode(self, outputs: Sequence[NDArray[np.float32]], height: int, width: int, min_score: float) -> Decoded:
        """The faces of one picture of at least that score; `outputs`: [rows, numbers] in the order of the graph."""
        ...


def cells(height: int, width: int, stride: int, anchors: int) -> Values:
    """Column and row of the cell of each anchor in a grid, [anchors · cells, 2]: a cell's anchors side by side."""
    rows, columns = np.mgrid[: height // stride, : width // stride]
    grid = np.stack([columns, rows], -1).reshape(-1, 2)
    return np.repeat(grid, anchors, axis=0).astype(np.float64)


def rows_of(height: int, width: int, stride: int, anchors: int) -> int:
    """Number of anchors in a grid."""
    return (height // stride) * (width // stride) * anchors
