"""The photos of a training: those of all its lists in one order, and which of them are held out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from data_prep.faces.annotated import AnnotatedPhoto, FaceList, open_faces
from data_prep.faces.listed import OUTSIDE, said
from data_prep.faces.pixels import open_photo, outside
from data_prep.mtcnn.faces import Picture
from data_prep.mtcnn.training.choice import Known
from dist_train.data.reject import Reject
from dist_train.errors import UserError
from dist_train.runtime.text import shown_name

GROUP = 8  # photos that are in memory together
_MARK_ONE = frozenset({"celeba"})  # layouts that mark one face of a photo, whoever else is in it


class Photos:
    """The photos of several lists, shuffled once.

    Attributes:
        lists: as opened.
        training: numbers of the photos to learn from, in order.
        heldout: numbers of the others.
        outside: number of faces outside of their picture, by the number of the photo, of those photos opened so far.
    """

    def __init__(self, lists: Sequence[FaceList], seed: int, heldout: float, most_heldout: int) -> None:
        """Photos of `lists`, of which a share `heldout` is held out, at most `most_heldout` and at least one.

        Those with other faces than the marked ones are all learnt from: of them nobody can say what is a false alarm.

        Raises:
            UserError: too few photos, or one that is listed twice.
        """
        self.lists = lists
        self.outside: dict[int, int] = {}
        self._places = [(each, number) for each in lists for number in range(len(each.photos))]
        self._refuse_twice()
        order = np.random.default_rng([seed, len(self._places)]).permutation(len(self._places)).tolist()
        whole = [number for number in order if self.marks_all(number)]
        if len(whole) < 2:
            raise UserError(
                f"{', '.join(str(each.path) for each in lists)}: {len(whole)} photos in which all faces are marked; "
                "training needs at least 2: add a set that has them, such as WIDER FACE (CelebA marks one face a photo)"
            )
        count = max(1, min(most_heldout, round(heldout * len(whole)), len(whole) - 1))
        self.heldout = whole[:count]
        heldout_ones = frozenset(self.heldout)
        self.training = [number for number in order if number not in heldout_ones]

    def __getitem__(self, number: int) -> AnnotatedPhoto:
        """A photo by its number."""
        each, place = self._places[number]
        return each.photos[place]

    def marks_all(self, number: int) -> bool:
        """Whether all faces of a photo are marked, by its list's layout."""
        return self._places[number][0].name not in _MARK_ONE

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each list, in order."""
        return [each.digest for each in self.lists]

    def _refuse_twice(self) -> None:
        """Raise for a file that is listed twice, under whatever paths: it could be both learnt from and held out."""
        folders: dict[str, str] = {}
        first: dict[str, FaceList] = {}
        twice: list[tuple[str, FaceList]] = []
        for number, (each, _) in enumerate(self._places):
            folder, name = os.path.split(self[number].path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            path = os.path.join(folders[folder], name)
            if os.path.islink(path):
                path = os.path.realpath(path)
            if path in first:
                twice.append((path, each))
            first.setdefault(path, each)
        if twice:
            path, second = twice[0]
            raise UserError(
                f"sets: {len(twice):,} photos are listed twice, e.g. {shown_name(path)} in {first[path].path} and in "
                f"{second.path}; what is held out may not be learnt from, and a face of one list alone would be "
                "background by the other: keep each photo in one list"
            )

    def check_points(self, min_face_px: float) -> None:
        """See that there are faces with five points to learn from, in their pictures.

        Raises:
            UserError: there are none.
        """
        lost: Counter[str] = Counter()
        for number in self.training:
            photo = self[number]
            if not _with_points(photo, min_face_px):
                continue
            opened = open_photo(photo)
            if isinstance(opened, Reject):
                lost["photos that cannot be read"] += 1
            elif _with_points(opened[1], min_face_px):
                return
            else:
                lost[OUTSIDE] += outside(photo, opened[1])
        for each in self.lists:
            lost.update(each.odd)
        raise UserError(
            f"{', '.join(str(each.path) for each in self.lists)}: no face of {min_face_px:g} px or more with five "
            f"points in {len(self.training)} photos{f' ({said(lost)})' if lost else ''}; O-Net learns points by them: "
            "add a set that has them"
        )

    def opened(
        self, numbers: Sequence[int], pool: Executor
    ) -> Iterator[tuple[int, tuple[Picture, AnnotatedPhoto] | Reject]]:
        """Photos by number with their pixels, or why there are none; decoded by the threads of `pool`, a few ahead."""
        for start in range(0, len(numbers), GROUP):
            group = numbers[start : start + GROUP]
            listed = [self[number] for number in group]
            for number, photo, found in zip(group, listed, pool.map(open_photo, listed), strict=True):
                if not isinstance(found, Reject) and (count := outside(photo, found[1])):
                    self.outside[number] = count
                yield number, found


def _with_points(photo: AnnotatedPhoto, min_face_px: float) -> bool:
    """Whether a face of a photo that is learnt has five points."""
    return bool(np.isfinite(Known.of(photo, min_face_px).points).all((1, 2)).any())


def open_photos(paths: Sequence[Path], seed: int, heldout: float, most_heldout: int, min_face_px: float) -> Photos:
    """The photos of the lists at `paths`.

    Raises:
        UserError: a list that cannot be read, or nothing to learn from.
    """
    photos = Photos([open_faces(path) for path in paths], seed, heldout, most_heldout)
    photos.check_points(min_face_px)
    return photos
