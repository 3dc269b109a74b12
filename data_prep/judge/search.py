"""What a detector finds in the photos of a set."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from data_prep.detectors.detector import FaceDetector
from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.pixels import open_photo
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
    """What was found in all photos that could be read, in their order, and why the others could not."""

    found: list[Found]
    unreadable: list[tuple[str, Reject]]


def search(photos: Sequence[AnnotatedPhoto], detector: FaceDetector) -> Search:
    """Look for faces in photos, under a progress bar.

    Raises:
        OSError: the storage failed, not a single photo.
    """
    result = Search([], [])
    with progress_bar(photos, desc="look for faces", unit="photo") as bar:
        for opened in in_groups(_opened(bar, result.unreadable), lambda each: each[0].size // 3, _BATCH):
            for (_, photo), faces in zip(opened, detector.detect([pixels for pixels, _ in opened]), strict=True):
                result.found.append(Found(photo, faces))
    return result


def _opened(
    photos: Iterable[AnnotatedPhoto], unreadable: list[tuple[str, Reject]]
) -> Iterator[tuple[Picture, AnnotatedPhoto]]:
    for photo in photos:
        opened = open_photo(photo)
        if isinstance(opened, Reject):
            unreadable.append((photo.name, opened))
        else:
            yield opened
