"""Input and output types of a detector, without torch, which takes seconds to import."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


class Faces(NamedTuple):
    """The faces of a picture, the most certain first.

    Attributes:
        boxes: [n, 4] float32: left, top, right, bottom in pixels; a box may extend beyond the picture.
        scores: [n] float32, certainty from 0 to 1.
        landmarks: [n, 5, 2] float32: x, y of left eye, right eye (as seen by the viewer), nose, left and right corner
            of the mouth, in pixels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]
