"""What a detector finds in the photos of a set."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from data_prep.detectors.detector import FaceDetector
from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.pixels import open_photo
from data_prep.mtcnn.faces import Faces, Picture
from dist_train.data.reject import Reject
from dist_train.runtime.progress import progress_bar

_BATCH = 16  # photos in memory at one time


class Found(NamedTuple):
    """What was found in a photo.

    Attributes:
        photo: with the faces outside of the picture ignored, too.
        faces: found, the most certain first.
    """

    photo: AnnotatedPhoto
    faces: Faces


class Search(NamedTuple):
    """What was found in all photos that could be read, in their order, and why the others could not."""

    found: list[Found]
    unreadable: list[tuple[str, Reject]]


def search(photos: Sequence[AnnotatedPhoto], detector: FaceDetector) -> Search:
    """Look for faces in photos, under a progress bar.

    Raises:
        OSError: the storage failed, not a single photo.
    """
    result = Search([], [])
    todo = iter(photos)
    with progress_bar(total=len(photos), desc="look for faces", unit="photo") as bar:
        while batch := list(islice(todo, _BATCH)):
            opened = list(_opened(batch, result.unreadable))
            for (_, photo), faces in zip(opened, detector.detect([pixels for pixels, _ in opened]), strict=True):
                result.found.append(Found(photo, faces))
            bar.update(len(batch))
    return result


def _opened(
    photos: Sequence[AnnotatedPhoto], unreadable: list[tuple[str, Reject]]
) -> Iterator[tuple[Picture, AnnotatedPhoto]]:
    for photo in photos:
        opened = open_photo(photo)
        if isinstance(opened, Reject):
            unreadable.append((photo.name, opened))
        else:
            yield opened
