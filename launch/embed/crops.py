"""Croppers, from encoded pictures to the square that a network takes: the centre of a picture, or an aligned face."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.align import SingleChoice, crop_centre
from data_prep.align_transform import Align
from data_prep.decode import MAX_PIXELS, decode
from data_prep.detectors.file import DetectorFile
from data_prep.mtcnn.faces import Faces
from data_prep.transforms import Crop, Process
from dist_train.data.aligner import Aligner
from dist_train.data.reject import Reject
from dist_train.errors import WorkError

_DECODERS = min(4, len(os.sched_getaffinity(0)))  # threads; OpenCV and Pillow decode outside the interpreter lock
_MAX_PIXELS = MAX_PIXELS // _DECODERS  # of each of their pictures


class Cut(NamedTuple):
    """A crop of a picture.

    Attributes:
        pixels: uint8 [S, S, 3], red first.
        found: all faces of the photo; None where no face was looked for.
        taken: number of the face that was cut out, in `found`.
    """

    pixels: NDArray[np.uint8]
    found: Faces | None = None
    taken: int = 0


class Cropper(Protocol):
    """A cropper of encoded pictures, for a network."""

    def described(self) -> dict[str, Any]:
        """The options that decide its crops, as JSON values."""
        ...

    def aligner(self) -> Aligner | None:
        """What places the faces in its crops; None: nothing does."""
        ...

    def __call__(self, pictures: Sequence[bytes]) -> list[Cut | Reject]:
        """The crop or the reject of each picture."""
        ...


class Centre:
    """The cropper of pictures that are aligned already: the largest centred square, scaled.

    Args:
        image_size: side S of the result in pixels.
    """

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size

    def described(self) -> dict[str, Any]:
        """Its name."""
        return {"align": False}

    def aligner(self) -> None:
        """None."""

    def __call__(self, pictures: Sequence[bytes]) -> list[Cut | Reject]:
        """The crop or the reject of each picture, decoded by several threads."""
        with ThreadPoolExecutor(_DECODERS) as pool:
            return list(pool.map(self._cut, pictures))

    def _cut(self, data: bytes) -> Cut | Reject:
        photo = decode(data, max_pixels=_MAX_PIXELS)
        return photo if isinstance(photo, Reject) else Cut(crop_centre(photo.pixels, self._image_size))


class AlignedFace:
    """The cropper of one face of each photo, aligned to the same pixels as by `headcount prep align`.

    Args:
        image_size: side S of the result in pixels.
        face: rule that chooses one of several faces, see `data_prep.align.choose`.
        min_face_px: side of the smallest face, in pixels of the shrunken photo.
        longer_side_px: larger photos are shrunk to this longer side for the search; None: no photo is.
        device: cpu or cuda.
        detector: file of another detector than the cascade of the package.
    """

    def __init__(
        self,
        image_size: int,
        face: SingleChoice = "main",
        min_face_px: float = 20,
        longer_side_px: int | None = None,
        device: str = "cpu",
        detector: DetectorFile | None = None,
    ) -> None:
        self.face = face
        self._align = Align(
            image_size=image_size,
            faces=face,
            min_face_px=min_face_px,
            longer_side_px=longer_side_px,
            device=device,
            detector=detector,
        )
        self._process: Process | None = None

    def described(self) -> dict[str, Any]:
        """The rule for the face, and the options of the search."""
        options = self._align.model_dump(mode="json", exclude={"image_size", "faces", "batch", "device"})
        return {"align": True, "face": self.face, **options}

    def aligner(self) -> Aligner:
        """The detector."""
        return self._align.aligner()

    def __call__(self, pictures: Sequence[bytes]) -> list[Cut | Reject]:
        """The crop or the reject of each photo; the detector takes all photos in one call."""
        if self._process is None:
            self._process = self._align.open()
        return [made if isinstance(made, Reject) else _cut(*made) for made in self._process(pictures)]


def _cut(crop: Crop) -> Cut:
    photo = decode(crop.data)
    if isinstance(photo, Reject):
        raise WorkError(f"a crop just encoded cannot be decoded: {photo.reason}: {photo.detail}; is memory damaged?")
    return Cut(photo.pixels, crop.found, crop.taken)
