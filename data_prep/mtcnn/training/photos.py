"""The photos of a training: those of all its lists in one order, and which of them are held out."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from data_prep.faces.annotated import AnnotatedPhoto, FaceList, open_faces
from data_prep.faces.pixels import open_photo
from data_prep.mtcnn.faces import Picture
from data_prep.mtcnn.training.choice import Known
from dist_train.data.reject import Reject
from dist_train.errors import UserError

GROUP = 8  # photos that are in memory together
_LOOKED_AT = 2000  # photos in which faces with points must be found


class Photos:
    """The photos of several lists, shuffled once.

    Attributes:
        lists: as opened.
        training: numbers of the photos to learn from, in order.
        heldout: numbers of the others.
    """

    def __init__(self, lists: Sequence[FaceList], seed: int, heldout: float, most_heldout: int) -> None:
        """Photos of `lists`, of which a share `heldout` is held out, at most `most_heldout` and at least one."""
        self.lists = lists
        self._places = [(each, number) for each in lists for number in range(len(each.photos))]
        if len(self._places) < 2:
            raise UserError(f"{lists[0].path}: {len(self._places)} photos; training needs at least 2")
        order = np.random.default_rng([seed, len(self._places)]).permutation(len(self._places)).tolist()
        count = max(1, min(most_heldout, round(heldout * len(order)), len(order) - 1))
        self.heldout, self.training = order[:count], order[count:]

    def __getitem__(self, number: int) -> AnnotatedPhoto:
        """A photo by its number."""
        each, place = self._places[number]
        return each.photos[place]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each list, in order."""
        return [each.digest for each in self.lists]

    def check_points(self, min_face_px: float) -> None:
        """See that there are faces with five points to learn from.

        Raises:
            UserError: there are none in the first thousands of photos.
        """
        for number in self.training[:_LOOKED_AT]:
            known = Known.of(self[number], min_face_px)
            if np.isfinite(known.points).all((1, 2)).any():
                return
        looked = min(_LOOKED_AT, len(self.training))
        raise UserError(
            f"{', '.join(str(each.path) for each in self.lists)}: no face of {min_face_px:g} px or more with five "
            f"points in {looked} photos; O-Net learns points by them: add a set that has them"
        )

    def opened(
        self, numbers: Sequence[int], pool: Executor
    ) -> Iterator[tuple[int, tuple[Picture, AnnotatedPhoto] | Reject]]:
        """Photos by number with their pixels, or why there are none; decoded by the threads of `pool`, a few ahead."""
        for start in range(0, len(numbers), GROUP):
            group = numbers[start : start + GROUP]
            yield from zip(group, pool.map(open_photo, [self[number] for number in group]), strict=True)


def open_photos(paths: Sequence[Path], seed: int, heldout: float, most_heldout: int, min_face_px: float) -> Photos:
    """The photos of the lists at `paths`.

    Raises:
        UserError: a list that cannot be read, or nothing to learn from.
    """
    photos = Photos([open_faces(path) for path in paths], seed, heldout, most_heldout)
    photos.check_points(min_face_px)
    return photos
