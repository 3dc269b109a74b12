"""The cascade as a detector: with the weights that come with this package, or trained ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.detectors.detector import SHIPPED, THRESHOLDS, shipped_digest
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.faces import Faces, Picture
from dist_train.runtime.digest import sha256_of


class CascadeDetector:
    """The cascade of three networks, see `data_prep.mtcnn.cascade.Detector` and `open_detector`."""

    name = SHIPPED
    has_points = True
    sure = 0.998  # in LFW 97 % of faces score as much; of 40 photos on side or head none scores more than 0.989

    def __init__(
        self,
        file: Path | None,
        device: str,
        min_face_px: float,
        thresholds: tuple[float, float, float] | None,
        batch_px: int,
        min_score: float | None,
    ) -> None:
        options: dict[str, Any] = {} if file is None else {"weights": file}
        if file is None or thresholds is not None:  # else those that the file was made for
            options["thresholds"] = thresholds or THRESHOLDS
        self._detector = Detector(device, min_face_px=min_face_px, batch_px=batch_px, **options)
        if min_score is not None:
            self._detector.thresholds = (*self._detector.thresholds[:2], min_score)
        self.digest = shipped_digest() if file is None else sha256_of(file)

    def detect(self, images: Sequence[Picture]) -> list[Faces]:
        """The faces of each picture, uint8 [height, width, 3], RGB."""
        return self._detector.detect(images)
