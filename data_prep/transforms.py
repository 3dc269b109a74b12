"""What a job makes of an encoded photo: nothing (it is aligned already), or aligned crops of its faces.

A transform is a set of options, stored in the plan; opened in a worker it becomes a function from encoded photos to
pictures. It may depend on its options and the photos alone, so that every engine makes the same bytes.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from data_prep.sources import Reject

if TYPE_CHECKING:
    from data_prep.mtcnn.faces import Faces


class Crop(NamedTuple):
    """One picture made of a photo.

    Attributes:
        data: encoded.
        extension: of the member that holds it.
        record: what its `.json` says besides the source; None for no `.json`.
        face_px: longer side of the face in the photo, in its pixels; None where no face was looked for.
        score: certainty of the detector, 0 to 1; None likewise.
        lead: of the chosen face over the next by the rule, see `data_prep.align.RunnerUp`; None where there was no
            choice.
        found: all faces of the photo, in its pixels; None where no face was looked for.
        taken: number of the face that was cut out, among these.
    """

    data: bytes
    extension: str
    record: dict[str, Any] | None = None
    face_px: float | None = None
    score: float | None = None
    lead: float | None = None
    found: "Faces | None" = None
    taken: int = 0


Made = list[Crop] | Reject
Process = Callable[[Sequence[bytes]], list[Made]]


class Transform(BaseModel, ABC):
    """Options of a transform."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(112, ge=1, description="side of the pictures in pixels")
    batch: int = Field(32, ge=1, description="photos handed over at once")

    @abstractmethod
    def open(self) -> Process:
        """The function from encoded photos to what is made of each. Called once, in the worker."""


class Keep(Transform):
    """Aligned pictures stay as they are, byte for byte; only their heads are looked at."""

    batch: int = 256

    def open(self) -> Process:
        """A function that checks kind and size of each picture."""
        return lambda photos: [self._keep(photo) for photo in photos]

    def _keep(self, photo: bytes) -> Made:
        head = picture_head(photo)
        if head is None:
            return Reject("not a picture", f"{len(photo)} bytes that start with {photo[:8].hex() or 'nothing'}")
        extension, width, height = head
        if (width, height) != (self.image_size, self.image_size):
            return Reject("wrong size", f"{width}x{height}, expected {self.image_size}x{self.image_size}")
        return [Crop(photo, extension)]


def picture_head(data: bytes) -> tuple[str, int, int] | None:
    """Extension, width and height of a JPEG or PNG by its head; None for anything else."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_head(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return "png", width, height
    return None


def _jpeg_head(data: bytes) -> tuple[str, int, int] | None:
    """Walk over the segments to the start of frame (ITU T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return "jpg", width, height
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
