"""Finders: from encoded photos to the faces in them, cut out for a network as `headcount embed` cuts them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from data_prep.align import choose, crop_centre, crop_landmarks, encode_crop
from data_prep.decode import Photo, decode
from data_prep.detectors.detector import FaceDetector
from data_prep.mtcnn.faces import Faces, Picture
from data_prep.searched import DECODED_PX, in_photo, least_side, rounded, shrunk
from dist_train.data.reject import Reject
from dist_train.errors import WorkError

JPEG_QUALITY = 95  # of crops, as in sets: their pixels are those that sets have
_DECODERS = min(4, len(os.sched_getaffinity(0)))


class Face(NamedTuple):
    """A face of a photo.

    Attributes:
        box: left, top, right, bottom in pixels of the upright photo.
        score: of the detector, 0 to 1; None where nothing was looked for.
        landmarks: five points, x and y in pixels; None as above.
        crop: uint8 [S, S, 3], red first.
    """

    box: list[float]
    score: float | None
    landmarks: list[list[float]] | None
    crop: Picture

    def jpeg(self) -> bytes:
        """The crop, encoded."""
        return encoded(self.crop)


class Seen(NamedTuple):
    """What was found in a photo.

    Attributes:
        faces: the surest first, at most as many as are allowed.
        found: number of all.
        main: number of the main face; None where there is none.
    """

    faces: list[Face]
    found: int
    main: int | None


class Finder(Protocol):
    """Finds what a network takes in photos. One thread at a time calls it."""

    def __call__(self, photos: Sequence[bytes]) -> list[Seen | Reject]:
        """What each photo shows, or why it cannot be used."""
        ...


class AlignedFaces:
    """The finder of faces, aligned by their landmarks.

    Args:
        detector: finds them.
        image_size: side S of a crop in pixels.
        min_face_px: side of the smallest face, in pixels of the photo as it is searched.
        longer_side_px: larger photos are shrunk to this longer side for the search; None: none is.
        max_pixels: of a photo.
        most: faces of a photo.
    """

    def __init__(
        self,
        detector: FaceDetector,
        image_size: int,
        min_face_px: float,
        longer_side_px: int | None,
        max_pixels: int,
        most: int,
    ) -> None:
        self._detector, self._image_size, self._longer_side_px = detector, image_size, longer_side_px
        self._max_pixels, self._most = max_pixels, most
        self._least_side_px = least_side(longer_side_px, image_size, min_face_px)

    def __call__(self, photos: Sequence[bytes]) -> list[Seen | Reject]:
        """The faces of each photo."""
        seen: list[Seen | Reject] = []
        for batch in decoded(photos, self._max_pixels, self._least_side_px):
            usable = [photo for photo in batch if isinstance(photo, Photo)]
            searched = [shrunk(photo.pixels, self._longer_side_px) for photo in usable]
            found = iter(zip(usable, searched, self._detector.detect(searched) if searched else [], strict=True))
            seen += [photo if isinstance(photo, Reject) else self._seen(*next(found)) for photo in batch]
        return seen

    def _seen(self, photo: Photo, searched: Picture, faces: Faces) -> Seen:
        faces = in_photo(faces, photo, searched)
        main = next(iter(choose(faces, "main", *photo.pixels.shape[:2])), None)
        kept = list(range(min(self._most, len(faces.boxes))))
        if main is not None and main not in kept:
            kept[-1] = main
        return Seen(
            [self._face(photo, faces, number) for number in kept],
            len(faces.boxes),
            None if main is None else kept.index(main),
        )

    def _face(self, photo: Photo, faces: Faces, number: int) -> Face:
        crop = crop_landmarks(photo.pixels, faces.landmarks[number], self._image_size)
        return Face(
            rounded(faces.boxes[number] * photo.shrink),
            round(float(faces.scores[number]), 5),
            [rounded(point * photo.shrink) for point in faces.landmarks[number]],
            _stored(crop),
        )


class WholePictures:
    """The finder where pictures are aligned already: the largest centred square, scaled.

    Args:
        image_size: side of a crop in pixels.
        max_pixels: of a photo.
    """

    def __init__(self, image_size: int, max_pixels: int) -> None:
        self._image_size, self._max_pixels = image_size, max_pixels

    def __call__(self, photos: Sequence[bytes]) -> list[Seen | Reject]:
        """The square of each picture."""
        return [
            photo if isinstance(photo, Reject) else self._seen(photo.pixels)
            for batch in decoded(photos, self._max_pixels, None)
            for photo in batch
        ]

    def _seen(self, pixels: Picture) -> Seen:
        height, width = pixels.shape[:2]
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        face = Face([left, top, left + side, top + side], None, None, crop_centre(pixels, self._image_size))
        return Seen([face], 1, 0)


def decoded(photos: Sequence[bytes], max_pixels: int, least_side_px: int | None) -> Iterator[list[Photo | Reject]]:
    """Batches of decoded photos, in order; the number of pixels in a batch is bounded."""
    batch: list[Photo | Reject] = []
    held = 0
    with ThreadPoolExecutor(_DECODERS) as pool:
        for start in range(0, len(photos), _DECODERS):  # no more are decoded ahead than there are threads
            some = photos[start : start + _DECODERS]
            for photo in pool.map(lambda data: decode(data, least_side_px, max_pixels), some):
                batch.append(photo)
                held += photo.pixels.size // 3 if isinstance(photo, Photo) else 0
            if held >= DECODED_PX:
                yield batch
                batch, held = [], 0
    yield batch


def encoded(picture: Picture) -> bytes:
    """A picture as JPEG."""
    return encode_crop(picture, JPEG_QUALITY)


def _stored(crop: Picture) -> Picture:
    """A crop as it is after it was stored in a set: what networks were trained on, and galleries are made of."""
    pixels = cv2.imdecode(np.frombuffer(encoded(crop), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise WorkError("a crop just encoded cannot be decoded; is memory damaged?")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
