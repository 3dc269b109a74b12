"""What a detector finds in the photos of a set."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from data_prep.detectors.detector import FaceDetector
from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.pixels import open_photo, outside
from data_prep.mtcnn.faces import Faces, Picture
from data_prep.searched import in_groups
from dist_train.data.reject import Reject
from dist_train.runtime.progress import progress_bar

_BATCH = 16  # photos in memory at one time, or fewer where they are large


class Found(NamedTuple):
    """What was found in a photo.

    Attributes:
        photo: with the faces outside of the picture ignored, too.
        faces: found, the most certain first.
    """

    photo: AnnotatedPhoto
    faces: Faces


class Search(NamedTuple):
    """What was found in all photos that could be read, in their order, and why the others could not.

    Attributes:
        found: of each photo.
        unreadable: names of photos, and the reasons.
        outside: number of known faces that are ignored since they are outside of their picture.
    """

    found: list[Found]
    unreadable: list[tuple[str, Reject]]
    outside: int


def search(photos: Sequence[AnnotatedPhoto], detector: FaceDetector) -> Search:
    """Look for faces in photos, under a progress bar.

    Raises:
        OSError: the storage failed, not a single photo.
    """
    found: list[Found] = []
    unreadable: list[tuple[str, Reject]] = []
    beyond = 0
    with progress_bar(photos, desc="look for faces", unit="photo") as bar:
        for group in in_groups(_opened(bar, unreadable), lambda each: each[0].size // 3, _BATCH):
            for (_, photo, opened), faces in zip(group, detector.detect([pixels for pixels, *_ in group]), strict=True):
                found.append(Found(opened, faces))
                beyond += outside(photo, opened)
    return Search(found, unreadable, beyond)


def _opened(
    photos: Iterable[AnnotatedPhoto], unreadable: list[tuple[str, Reject]]
) -> Iterator[tuple[Picture, AnnotatedPhoto, AnnotatedPhoto]]:
    """Pixels of each photo, the photo as listed, and as it was opened."""
    for photo in photos:
        opened = open_photo(photo)
        if isinstance(opened, Reject):
            unreadable.append((photo.name, opened))
        else:
            pixels, seen = opened
            yield pixels, photo, seen
