"""The head of YuNet (Wu et al. 2023), as OpenCV's zoo has it (`face_detection_yunet`, 2023 and later).

One anchor a cell at strides 8, 16 and 32. For cell c the network gives the probabilities of a face and of an object, an
offset b of the box, and offsets o of the five points, in strides s (`FaceDetectorYN` in OpenCV's
`modules/objdetect/src/face_detect.cpp`):

    score = sqrt(face · object)    centre = s (c + b[:2])    width, height = s exp(b[2:])    point k = s (c + o[k])
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.detectors.decoded import STRIDES, Decoded, cells, rows_of
from data_prep.mtcnn.faces import Picture

_KINDS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}  # outputs of each stride, by name: numbers of a row


class YuNet:
    """The convention of a YuNet network.

    Args:
        places: numbers of its outputs by stride: face, object, box, points.
    """

    name = "yunet"
    overlap = 0.3
    sure = 0.9  # from which on OpenCV's sample takes a face for one
    has_points = True

    def __init__(self, places: Sequence[Sequence[int]]) -> None:
        self._places = places

    @classmethod
    def of(cls, names: Sequence[str], shapes: Sequence[tuple[int, int]], height: int, width: int) -> "YuNet | None":
        """The convention of a network with such outputs, by names and shapes [rows, numbers]; None: another kind."""
        wanted = {
            f"{kind}_{stride}": (rows_of(height, width, stride, 1), wide)
            for stride in STRIDES
            for kind, wide in _KINDS.items()
        }
        if dict(zip(names, shapes, strict=True)) != wanted:
            return None
        return cls([[list(names).index(f"{kind}_{stride}") for kind in _KINDS] for stride in STRIDES])

    def values(self, pictures: Picture) -> NDArray[np.float32]:
        """Blue first, 0 to 255."""
        return np.ascontiguousarray(pictures[..., ::-1].transpose(0, 3, 1, 2), np.float32)

    def decode(self, outputs: Sequence[NDArray[np.float32]], height: int, width: int, min_score: float) -> Decoded:
        """See `Head`."""
        found = []
        for stride, places in zip(STRIDES, self._places, strict=True):
            face, thing = (outputs[place][:, 0].astype(np.float64).clip(0, 1) for place in places[:2])
            scores = np.sqrt(face * thing)
            sure = np.flatnonzero(scores >= min_score)
            cell = cells(height, width, stride, 1)[sure]
            box = outputs[places[2]][sure].astype(np.float64)
            centre = cell + box[:, :2]
            with np.errstate(over="ignore"):
                half = np.exp(box[:, 2:]) / 2
            boxes = np.concatenate([centre - half, centre + half], 1) * stride
            points = (cell[:, None] + outputs[places[3]][sure].reshape(-1, 5, 2)) * stride
            found.append(Decoded(boxes, scores[sure], points))
        return Decoded(*map(np.concatenate, zip(*found, strict=True)))
