"""The head of RetinaFace (Deng et al. 2020, arXiv 1905.00641), as its PyTorch version (biubug6) is exported.

Each cell at strides 8, 16 and 32 has two priors, squares about the cell's centre p with the sides below. With offsets l
and points q that the network gives, and the variances 0.1 and 0.2 of SSD (Liu et al. 2016):

    centre = p + 0.1 l[:2] side    width, height = side exp(0.2 l[2:])    point k = p + 0.1 q[k] side
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.detectors.decoded import STRIDES, Decoded, Values, cells, rows_of
from data_prep.mtcnn.faces import Picture

_SIDES = ((16, 32), (64, 128), (256, 512))  # pixels, by stride
_MEAN = np.array([104, 117, 123], np.float32)  # blue, green, red
_CENTRE, _SIZE = 0.1, 0.2  # variances


class RetinaFace:
    """The convention of a RetinaFace network.

    Args:
        boxes: number of the output with offsets of boxes.
        scores: of the output with two numbers a prior: no face, face.
        points: of the output with points; None without.
    """

    name = "retinaface"
    overlap = 0.4
    sure = 0.99  # a softmax, like the cascade's

    def __init__(self, boxes: int, scores: int, points: int | None) -> None:
        self._boxes, self._scores, self._points = boxes, scores, points
        self.has_points = points is not None

    @classmethod
    def of(
        cls, names: Sequence[str], shapes: Sequence[tuple[int, int]], height: int, width: int
    ) -> "RetinaFace | None":
        """The convention of a network with outputs of such shapes [rows, numbers] for a picture; None: another kind."""
        del names  # each export has its own
        rows = sum(rows_of(height, width, stride, len(_SIDES[0])) for stride in STRIDES)
        at = {wide: number for number, (count, wide) in enumerate(shapes) if count == rows}
        if len(at) != len(shapes) or set(at) not in ({4, 2}, {4, 2, 10}):
            return None
        return cls(at[4], at[2], at.get(10))

    def values(self, pictures: Picture) -> NDArray[np.float32]:
        """Blue first, less the mean of ImageNet's pictures."""
        return np.ascontiguousarray((pictures[..., ::-1].astype(np.float32) - _MEAN).transpose(0, 3, 1, 2))

    def decode(self, outputs: Sequence[NDArray[np.float32]], height: int, width: int, min_score: float) -> Decoded:
        """See `Head`."""
        scores = _probabilities(outputs[self._scores].astype(np.float64))
        sure = np.flatnonzero(scores >= min_score)
        prior = _priors(height, width)[sure]
        centre, side = prior[:, :2], prior[:, 2:]
        offsets = outputs[self._boxes][sure].astype(np.float64)
        middle = centre + _CENTRE * offsets[:, :2] * side
        with np.errstate(over="ignore"):
            half = side * np.exp(_SIZE * offsets[:, 2:]) / 2
        points = np.full((len(sure), 5, 2), np.nan)
        if self._points is not None:
            points = centre[:, None] + _CENTRE * outputs[self._points][sure].reshape(-1, 5, 2) * side[:, None]
        return Decoded(np.concatenate([middle - half, middle + half], 1), scores[sure], points)


def _priors(height: int, width: int) -> Values:
    """Centre and side of every prior in pixels, [rows, 3]."""
    grids = []
    for stride, sides in zip(STRIDES, _SIDES, strict=True):
        centres = (cells(height, width, stride, len(sides)) + 0.5) * stride
        grids.append(np.column_stack([centres, np.tile(sides, len(centres) // len(sides))]))
    return np.concatenate(grids)


def _probabilities(scores: Values) -> Values:
    """Probability of a face, [rows], of two probabilities or, where the export ends before them, two logits a row."""
    if np.abs(scores.sum(1) - 1).max(initial=0) < 1e-3 and scores.min(initial=0) >= 0:
        return scores[:, 1]
    with np.errstate(over="ignore"):
        probabilities: Values = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    return probabilities
