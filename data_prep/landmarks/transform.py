"""The transform that cuts faces out of raw photos by landmarks that were made elsewhere; no detector runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_prep.align import crop_box, crop_centre, crop_landmarks, encode_crop
from data_prep.decode import decode
from data_prep.landmarks.stored import StoredLandmarks, check_photos, store_table
from data_prep.landmarks.table import LandmarkTable
from data_prep.transforms import Crop, Made, NamedProcess, Process, Transform
from dist_train.data.aligner import Aligner
from dist_train.data.alignment import TEMPLATE_112, similarity_transform
from dist_train.data.reject import Reject

_LEAST_SPREAD_PX = 1.0  # of five points in either direction; with less they are no face
_LEAST_SHOWN = 0.1  # share of a crop by five points that shows the photo; with less the rest is black
_GRID = (np.indices((16, 16)).reshape(2, -1).T + 0.5) * 7  # [256, 2], places all over a crop of 112 pixels
_MOST_BOX = 4  # longer sides of a photo that its box may measure


class Placed(Transform):
    """Faces at the landmarks of a table, cut out by them or by the table's boxes."""

    table: LandmarkTable
    crop: Literal["landmarks", "box"] = Field("landmarks", description="what crops follow")
    margin: float = Field(0.1, ge=0, le=2, description="around a box, as a share of its longer side")
    no_face: Literal["drop", "centre"] = Field("drop", description="what becomes of a photo without points")
    jpeg_quality: int = Field(95, ge=50, le=100)

    def aligner(self) -> Aligner:
        """The table, and by what of its faces crops are cut."""
        return Aligner("landmarks" if self.crop == "landmarks" else f"landmarks box {self.margin:g}", self.table.sha256)

    def plan(self, home: Path, photos: Iterable[str]) -> None:
        """The table goes into the job's own files, and is compared with the photos."""
        store_table(self.table, home)
        check_photos(self.table, home, photos)

    def open(self) -> Process:
        """Nothing: photos are known by their names."""
        raise TypeError("landmarks are of photos with names; use open_in")

    def open_in(self, home: Path) -> NamedProcess:
        """The cutting of photos by the rows of the stored table."""
        stored = StoredLandmarks(home)
        return lambda photos, names: [self._made(*each, stored) for each in zip(photos, names, strict=True)]

    def _made(self, data: bytes, name: str, stored: StoredLandmarks) -> Made:
        photo = decode(data)
        if isinstance(photo, Reject):
            return photo
        pixels = photo.pixels
        row = stored.row_of(name)
        box, points = (None, None) if row is None else stored[row]
        if box is None or points is None or np.isnan(points).all():
            if self.no_face == "drop":
                told = "the table has no row of it" if row is None else "its row of the table has no point"
                return Reject("no landmarks", told)
            return [Crop(encode_crop(crop_centre(pixels, self.image_size), self.jpeg_quality), "jpg", {})]
        has_box = bool(np.isfinite(box).all())
        if reason := _fault(points, *pixels.shape[:2]):
            return Reject("bad landmarks", reason)
        if self.crop == "box":
            if not (has_box and (box[2:] > box[:2]).all()):
                return Reject("no box", "its row of the table has none, or one of no size")
            if reason := _box_fault(box, *pixels.shape[:2]):
                return Reject("no box", reason)
            picture = crop_box(pixels, box, self.image_size, self.margin)
        else:
            picture = crop_landmarks(pixels, points, self.image_size)
        record: dict[str, Any] = {"landmarks": [_rounded(point) for point in points]}
        if has_box:
            record["box"] = _rounded(box)
        side = float((box[2:] - box[:2]).max()) if has_box else None
        return [Crop(encode_crop(picture, self.jpeg_quality), "jpg", record, face_px=side)]


def _fault(points: NDArray[np.float32], height: int, width: int) -> str:
    """Why five points [5, 2] are of no face in a photo of such a size in pixels; empty if they are."""
    if not np.isfinite(points).all():
        return "a coordinate is missing"
    if ((points < 0) | (points >= [width, height])).any(1).all():
        return f"all five points are outside of the photo, {width}x{height} pixels"
    if (np.ptp(points, axis=0) < _LEAST_SPREAD_PX).any():
        return "its five points are on a line"
    if (share := _shown(points, height, width)) < _LEAST_SHOWN:
        return f"{share:.0%} of the crop at its five points would show the photo, {width}x{height} pixels"
    return ""


def _shown(points: NDArray[np.float32], height: int, width: int) -> float:
    """Share of the crop at five points [5, 2] that shows the photo; one point far from the others makes it a dot."""
    move = similarity_transform(points.astype(np.float64), TEMPLATE_112)
    back = np.linalg.pinv(move[:, :2])  # which exists where all is moved to one place, too
    places = (_GRID - move[:, 2]) @ back.T
    return float(((places >= 0) & (places < [width, height])).all(1).mean())


def _box_fault(box: NDArray[np.float32], height: int, width: int) -> str:
    """Why a box [4] is of no face in a photo of such a size in pixels; empty if it is."""
    shown = ", ".join(f"{side:g}" for side in box)
    if (box[2:] <= 0).any() or (box[:2] >= [width, height]).any():
        return f"its box, {shown}, is outside of the photo, {width}x{height} pixels"
    if (box[2:] - box[:2]).max() > _MOST_BOX * max(height, width):
        return f"its box, {shown}, is more than {_MOST_BOX} times as large as the photo, {width}x{height} pixels"
    return ""


def _rounded(pixels: NDArray[np.float32]) -> list[float]:
    return [round(float(value), 2) for value in pixels]
