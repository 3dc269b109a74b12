"""The transform that finds faces in raw photos and cuts them out aligned."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from data_prep.align import Choice, choose, crop_box, crop_centre, crop_landmarks
from data_prep.decode import Photo, decode
from data_prep.mtcnn.faces import Faces, Picture
from data_prep.sources import Reject
from data_prep.transforms import Crop, Made, Process, Transform

DECODED_PX = 32_000_000  # pixels of decoded photos that are held at once, 3 bytes each


class Align(Transform):
    """Faces found by the cascade, cut out by landmarks or by box."""

    min_face_px: float = Field(20, ge=12, description="smallest face, in pixels of the photo as it is searched")
    longer_side_px: int | None = Field(None, ge=12, description="larger photos are searched at this size; None: as is")
    thresholds: tuple[float, float, float] = Field((0.6, 0.7, 0.7), description="of the three networks' scores")
    faces: Choice = Field("largest", description="which of a photo's faces")
    crop: Literal["landmarks", "box"] = Field("landmarks", description="what crops follow")
    margin: float = Field(0.1, ge=0, le=2, description="around a box, as a share of its longer side")
    no_face: Literal["drop", "centre"] = Field("drop", description="what becomes of a photo without a face")
    jpeg_quality: int = Field(95, ge=50, le=100)
    device: str = Field("cpu", description="cpu or cuda; the two differ in the last bits of a crop's place")

    def open(self) -> Process:
        """A detector's work on batches of photos."""
        return _Aligner(self)


class _Aligner:
    def __init__(self, options: Align) -> None:
        from data_prep.mtcnn.cascade import Detector  # seconds of imports, which the job itself need not wait for

        self._options = options
        self._detector = Detector(
            options.device, min_face_px=options.min_face_px, thresholds=options.thresholds, batch_px=DECODED_PX // 4
        )
        # A photo may be decoded smaller as long as the smallest face is no smaller than its crop.
        self._least_side_px = None
        if options.longer_side_px is not None:
            self._least_side_px = math.ceil(options.longer_side_px * max(1, options.image_size / options.min_face_px))

    def __call__(self, photos: Sequence[bytes]) -> list[Made]:
        made: list[Made] = []
        for batch in self._decoded(photos):
            decoded = [photo for photo in batch if isinstance(photo, Photo)]
            searched = [self._as_searched(photo.pixels) for photo in decoded]
            found = iter(zip(decoded, searched, self._detector.detect(searched), strict=True))
            made += [photo if isinstance(photo, Reject) else self._crops(*next(found)) for photo in batch]
        return made

    def _decoded(self, photos: Sequence[bytes]) -> Iterator[list[Photo | Reject]]:
        """The photos in their order, in batches whose pixels are bounded."""
        batch: list[Photo | Reject] = []
        held = 0
        for data in photos:
            photo = decode(data, self._least_side_px)
            batch.append(photo)
            held += photo.pixels.size // 3 if isinstance(photo, Photo) else 0
            if held >= DECODED_PX:
                yield batch
                batch, held = [], 0
        yield batch

    def _as_searched(self, pixels: Picture) -> Picture:
        height, width = pixels.shape[:2]
        share = (self._options.longer_side_px or math.inf) / max(height, width)
        if share >= 1:
            return pixels
        size = max(1, round(width * share)), max(1, round(height * share))
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    def _crops(self, photo: Photo, searched: Picture, faces: Faces) -> Made:
        options = self._options
        height, width = photo.pixels.shape[:2]
        grown = np.array([width / searched.shape[1], height / searched.shape[0]], np.float32)  # x, y
        faces = Faces(faces.boxes * np.tile(grown, 2), faces.scores, faces.landmarks * grown)
        chosen = choose(faces, options.faces, height, width)
        if not chosen:
            if options.no_face == "drop":
                return Reject("no face", f"{width * photo.shrink}x{height * photo.shrink} pixels")
            return [self._encoded(crop_centre(photo.pixels, options.image_size), {}, None, None)]
        return [self._crop(photo, faces, number) for number in chosen]

    def _crop(self, photo: Photo, faces: Faces, number: int) -> Crop:
        options = self._options
        box, landmarks, score = faces.boxes[number], faces.landmarks[number], float(faces.scores[number])
        if options.crop == "landmarks":
            picture = crop_landmarks(photo.pixels, landmarks, options.image_size)
        else:
            picture = crop_box(photo.pixels, box, options.image_size, options.margin)
        in_photo = (box * photo.shrink).round(2)
        record = {
            "box": [round(float(side), 2) for side in in_photo],
            "landmarks": [[round(float(value), 2) for value in point] for point in landmarks * photo.shrink],
            "score": round(score, 5),
        }
        return self._encoded(picture, record, float((in_photo[2:] - in_photo[:2]).max()), score)

    def _encoded(self, picture: Picture, record: dict[str, Any], face_px: float | None, score: float | None) -> Crop:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality])
        return Crop(data.tobytes(), "jpg", record, face_px, score)
