"""The head of SCRFD (Guo et al. 2021, arXiv 2105.04714), as InsightFace exports it.

Two anchors a cell at strides 8, 16 and 32. For an anchor in cell c the network gives a score, the distances d of the
box's four sides from the cell's corner, and offsets o of the five points from it, all in strides s:

    left, top = s (c - d[:2])    right, bottom = s (c + d[2:])    point k = s (c + o[k])
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.detectors.decoded import STRIDES, Decoded, cells, rows_of
from data_prep.mtcnn.faces import Picture

_ANCHORS = 2
_WIDTHS = (1, 4, 10)  # numbers of a score, a box, five points


class Scrfd:
    """The convention of a SCRFD network.

    Args:
        places: numbers of its outputs by stride: score, box and, where it finds them, points.
    """

    name = "scrfd"
    overlap = 0.4
    sure = 0.75  # in LFW 97 % of faces score as much; of 40 photos on their head one does

    def __init__(self, places: Sequence[Sequence[int]]) -> None:
        self._places = places
        self.has_points = len(places[0]) == len(_WIDTHS)

    @classmethod
    def of(cls, names: Sequence[str], shapes: Sequence[tuple[int, int]], height: int, width: int) -> "Scrfd | None":
        """The convention of a network with outputs of such shapes [rows, numbers] for a picture; None: another kind."""
        del names  # each export has its own
        for widths in (_WIDTHS, _WIDTHS[:2]):
            wanted = [[(rows_of(height, width, stride, _ANCHORS), wide) for wide in widths] for stride in STRIDES]
            if sorted(shapes) == sorted(shape for each in wanted for shape in each):
                return cls([[list(shapes).index(shape) for shape in each] for each in wanted])
        return None

    def values(self, pictures: Picture) -> NDArray[np.float32]:
        """Red first, (value - 127.5) / 128."""
        return np.ascontiguousarray(((pictures.astype(np.float32) - 127.5) / 128).transpose(0, 3, 1, 2))

    def decode(self, outputs: Sequence[NDArray[np.float32]], height: int, width: int, min_score: float) -> Decoded:
        """See `Head`."""
        found = []
        for stride, places in zip(STRIDES, self._places, strict=True):
            scores = outputs[places[0]][:, 0].astype(np.float64)
            sure = np.flatnonzero(scores >= min_score)
            cell = cells(height, width, stride, _ANCHORS)[sure]
            away = outputs[places[1]][sure].astype(np.float64)
            boxes = np.concatenate([cell - away[:, :2], cell + away[:, 2:]], 1) * stride
            points = np.full((len(sure), 5, 2), np.nan)
            if self.has_points:
                points = (cell[:, None] + outputs[places[2]][sure].reshape(-1, 5, 2)) * stride
            found.append(Decoded(boxes, scores[sure], points))
        return Decoded(*map(np.concatenate, zip(*found, strict=True)))
