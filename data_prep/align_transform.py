"""The transform that finds faces in raw photos and cuts them out aligned."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data_prep.align import Choice, RunnerUp, choose, crop_box, crop_centre, crop_landmarks, encode_crop, runner_up
from data_prep.decode import Photo, decode
from data_prep.detectors.detector import SHIPPED, THRESHOLDS, shipped_digest
from data_prep.detectors.file import DetectorFile
from data_prep.detectors.open import open_detector
from data_prep.detectors.upright import Turned, detect_turned
from data_prep.mtcnn.faces import Faces, Picture
from data_prep.searched import DECODED_PX, in_groups, in_photo, least_side, rounded, shrunk
from data_prep.transforms import Crop, Made, Process, Transform
from dist_train.data.aligner import Aligner
from dist_train.data.reject import Reject


class Align(Transform):
    """Faces found by a detector, cut out by landmarks or by box."""

    min_face_px: float = Field(20, ge=12, description="smallest face, in pixels of the photo as it is searched")
    longer_side_px: int | None = Field(None, ge=12, description="larger photos are searched at this size; None: as is")
    detector: DetectorFile | None = Field(None, description="file of another detector than the cascade of the package")
    thresholds: tuple[float, float, float] | None = Field(None, description="of the scores of the cascade's networks")
    min_score: float | None = Field(None, gt=0, lt=1, description="of a face, by any detector; None: its default")
    upright: bool | None = Field(None, description="whether four turns are tried where no face is sure")
    faces: Choice = Field("main", description="which of a photo's faces")
    crop: Literal["landmarks", "box"] = Field("landmarks", description="what crops follow")
    margin: float = Field(0.1, ge=0, le=2, description="around a box, as a share of its longer side")
    no_face: Literal["drop", "centre"] = Field("drop", description="what becomes of a photo without a face")
    jpeg_quality: int = Field(95, ge=50, le=100)
    device: str = Field("cpu", description="cpu or cuda; the two differ in the last bits of a crop's place")

    @model_validator(mode="before")
    @classmethod
    def _fill_thresholds(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With the thresholds of the package's cascade, which older plans have too."""
        shipped = values.get("detector") is None and values.get("min_score") is None
        return {**values, "thresholds": THRESHOLDS} if shipped and values.get("thresholds") is None else values

    def aligner(self) -> Aligner:
        """The detector, and by what of its faces crops are cut."""
        name, digest = (self.detector.name, self.detector.sha256) if self.detector else (SHIPPED, shipped_digest())
        return Aligner(name if self.crop == "landmarks" else f"{name} box {self.margin:g}", digest)

    def open(self) -> Process:
        """A detector's work on batches of photos."""
        return _Aligner(self)


class _Aligner:
    def __init__(self, options: Align) -> None:
        self._options = options
        self._detector = open_detector(
            options.detector.path if options.detector else None,
            options.device,
            min_face_px=options.min_face_px,
            thresholds=options.thresholds,
            batch_px=DECODED_PX // 4,
            min_score=options.min_score,
            side_px=options.longer_side_px,
        )
        if options.detector is not None:
            options.detector.check(self._detector)
        self._least_side_px = least_side(options.longer_side_px, options.image_size, options.min_face_px)

    def __call__(self, photos: Sequence[bytes]) -> list[Made]:
        made: list[Made] = []
        decoded_photos = (decode(data, self._least_side_px) for data in photos)
        for batch in in_groups(decoded_photos, lambda each: each.pixels.size // 3 if isinstance(each, Photo) else 0):
            decoded = [photo for photo in batch if isinstance(photo, Photo)]
            searched = [shrunk(photo.pixels, self._options.longer_side_px) for photo in decoded]
            found = iter(zip(decoded, searched, self._detect(searched), strict=True))
            made += [photo if isinstance(photo, Reject) else self._crops(*next(found)) for photo in batch]
        return made

    def _detect(self, searched: Sequence[Picture]) -> list[Turned]:
        if self._options.upright:
            return detect_turned(self._detector, searched)
        return [Turned(faces, 0) for faces in self._detector.detect(searched)]

    def _crops(self, photo: Photo, searched: Picture, found: Turned) -> Made:
        options, faces = self._options, in_photo(found.faces, photo, searched)
        height, width = photo.pixels.shape[:2]
        chosen = choose(faces, options.faces, height, width)
        second = runner_up(faces, options.faces, height, width)
        if not chosen:
            if options.no_face == "drop":
                return Reject("no face", f"{width * photo.shrink}x{height * photo.shrink} pixels")
            return [Crop(self._encoded(crop_centre(photo.pixels, options.image_size)), "jpg", {})]
        return [self._crop(photo, found._replace(faces=faces), number, second) for number in chosen]

    def _crop(self, photo: Photo, turned: Turned, number: int, second: RunnerUp | None) -> Crop:
        options, faces = self._options, turned.faces
        if options.crop == "landmarks":  # which lie as the face does
            picture = crop_landmarks(photo.pixels, faces.landmarks[number], options.image_size)
        else:
            picture = crop_box(photo.pixels, faces.boxes[number], options.image_size, options.margin)
            picture = np.rot90(picture, -turned.turn // 90)
        found = Faces(faces.boxes * photo.shrink, faces.scores, faces.landmarks * photo.shrink)
        left, top, right, bottom = box = rounded(found.boxes[number])
        score = float(found.scores[number])
        record: dict[str, Any] = {"box": box, "score": round(score, 5), "faces": len(found.scores)}
        if self._detector.has_points:
            record["landmarks"] = [rounded(point) for point in found.landmarks[number]]
        if turned.turn:
            record["turn"] = turned.turn
        if second is not None:
            record |= {"lead": round(second.lead, 4), "runner_up": rounded(found.boxes[second.number])}
        return Crop(
            self._encoded(picture),
            "jpg",
            record,
            face_px=max(right - left, bottom - top),
            score=score,
            lead=second.lead if second else None,
            found=found,
            taken=number,
        )

    def _encoded(self, picture: Picture) -> bytes:
        return encode_crop(picture, self._options.jpeg_quality)
