"""Transforms of encoded photos: photos that are aligned already stay as they are, others give crops of their faces.

A transform is a set of options, stored in the plan; opened in a worker it becomes a function from encoded photos to
pictures. It may depend on its options and the photos alone, so that every engine makes the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from dist_train.data.aligner import Aligner
from dist_train.data.picture_header import cut_off, described, read_header, too_many_scans
from dist_train.data.pictures import EXTENSIONS
from dist_train.data.reject import Reject
from dist_train.section import Section

if TYPE_CHECKING:
    from data_prep.mtcnn.faces import Faces


class Crop(NamedTuple):
    """One picture made of a photo.

    Attributes:
        data: the encoded picture.
        extension: of the tar member with the picture.
        record: content of the sample's `.json` beside the source; None for no `.json`.
        face_px: longer side of the face, in pixels of the photo; None where no face was looked for.
        score: certainty of the detector, 0 to 1; None where no face was looked for.
        lead: lead of the chosen face over the second best, see `data_prep.align.RunnerUp`; None where the photo has
            one face, or all faces are taken.
        found: all faces of the photo, in pixels of the photo; None where no face was looked for.
        taken: number of the face that was cut out, in `found`.
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
NamedProcess = Callable[[Sequence[bytes], Sequence[str]], list[Made]]
"""Of photos and their names."""


class Transform(Section, ABC):
    """Options of a transform."""

    image_size: int = Field(112, ge=1, description="side of the pictures in pixels")
    batch: int = Field(32, ge=1, description="photos handed over at once")

    def aligner(self) -> Aligner | None:
        """What places the faces in its pictures; None where it does not."""
        return None

    def plan(self, home: Path, photos: Iterable[str]) -> None:
        """Prepare, and check, what workers will need beside the photos. Called once, while a job is planned.

        Args:
            home: directory of the job's own files.
            photos: names of all photos, as in the samples' `source`.

        Raises:
            UserError: it does not go with the photos.
        """

    def open_in(self, home: Path) -> NamedProcess:
        """As `open`, for photos whose names are given too, in a job with its own files in `home`."""
        del home
        process = self.open()
        return lambda photos, _: process(photos)

    @abstractmethod
    def open(self) -> Process:
        """The function from encoded photos to the crops or the reject of each. Called once, in the worker."""


class Keep(Transform):
    """The transform of pictures that are aligned already: bytes stay the same, and only headers are read."""

    batch: int = 256

    def open(self) -> Process:
        """A function that checks kind and size of each picture, and that it is whole."""
        return lambda photos: [self._keep(photo) for photo in photos]

    def _keep(self, photo: bytes) -> Made:
        header = read_header(photo)
        if header is None:
            return Reject("not a picture", described(photo))
        if (header.width, header.height) != (self.image_size, self.image_size):
            return Reject("wrong size", f"{header.width}x{header.height}, expected {self.image_size}x{self.image_size}")
        if reason := cut_off(photo, header):
            return Reject("truncated", reason)
        if reason := too_many_scans(photo, header):
            return Reject("damaged", reason)
        return [Crop(photo, EXTENSIONS[header.kind])]
