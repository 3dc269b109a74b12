"""A set of photos with faces at known places, whatever list it came with."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.celeba import BOXES, find_celeba, read_celeba
from data_prep.faces.fddb import FOLD, find_fddb, read_fddb
from data_prep.faces.listed import Listed, said
from data_prep.faces.retinaface import LIST as RETINAFACE
from data_prep.faces.retinaface import find_retinaface, read_retinaface
from data_prep.faces.sides import exchanged_sides
from data_prep.faces.table import NAMES, SUFFIXES, find_table, read_table
from data_prep.faces.wider import LIST, find_wider, read_wider
from dist_train.errors import UserError
from dist_train.runtime.digest import sha256_of

logger = logging.getLogger(__name__)

_KNOWN = (
    f"a table named {' or '.join(NAMES)}, wider_face_*_bbx_gt.txt, RetinaFace's {RETINAFACE}, {BOXES}, "
    "FDDB-fold-*-ellipseList.txt"
)
_READERS = {
    "table": read_table,
    "wider": read_wider,
    "retinaface": read_retinaface,
    "celeba": read_celeba,
    "fddb": read_fddb,
}


class AnnotatedPhoto(NamedTuple):
    """A photo, and where its faces are.

    Attributes:
        name: as the list has it.
        path: a file below the list's folder.
        boxes: float32 [n, 4]: left, top, right, bottom in pixels; right and bottom are exclusive, so that the width is
            right - left. A box may reach beyond the picture.
        landmarks: float32 [n, 5, 2] in the order of `data_prep.mtcnn.faces.Faces`, NaN where unknown.
        ignored: bool [n]: marked invalid, or of no size; neither face nor background.
    """

    name: str
    path: Path
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    ignored: NDArray[np.bool_]


class _Photos(Sequence[AnnotatedPhoto]):
    """The photos of a list, made when they are asked for."""

    def __init__(self, content: Listed) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content.photos)

    @overload
    def __getitem__(self, number: int) -> AnnotatedPhoto: ...
    @overload
    def __getitem__(self, number: slice) -> list[AnnotatedPhoto]: ...
    def __getitem__(self, number: int | slice) -> AnnotatedPhoto | list[AnnotatedPhoto]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        content = self._content
        place = range(len(self))[number]
        name = content.photos[place]
        faces = slice(int(content.starts[place]), int(content.starts[place + 1]))
        return AnnotatedPhoto(
            name, content.folder / name, content.boxes[faces], content.landmarks[faces], content.ignored[faces]
        )

    def __iter__(self) -> Iterator[AnnotatedPhoto]:
        return (self[number] for number in range(len(self)))


@dataclass(frozen=True, slots=True)
class FaceList:
    """A set of photos with faces at known places.

    Attributes:
        name: of its layout: `wider`, `retinaface`, `celeba`, `fddb` or `table`.
        path: the list.
        photos: in the order of the list, pixels not read.
        digest: SHA-256 of the lists.
        odd: number of faces by what is odd about them; the rules are those of `data_prep.faces.listed.listed`.
        exchanged: what to say of points whose left and right are likely those of the subject; empty: nothing.
        ellipses: of each photo its faces' major and minor radius, angle and center, [n, 5]; None where faces are boxes.
    """

    name: str
    path: Path
    photos: Sequence[AnnotatedPhoto]
    digest: str
    odd: dict[str, int]
    exchanged: str
    ellipses: list[NDArray[np.float64]] | None = None

    def tell(self) -> None:
        """Log what is odd about its faces."""
        if self.odd:
            logger.info("%s: odd faces: %s", self.path, said(self.odd))
        if self.exchanged:
            logger.warning("%s: %s", self.path, self.exchanged)

    def check_left(self, photos: Iterable[AnnotatedPhoto], odd: Mapping[str, int]) -> None:
        """Look whether any of the faces in `photos`, which are its own, counts; `odd` says why others do not.

        Photos without faces alone are no mistake: a detector has false alarms on them.

        Raises:
            UserError: there are faces, and all are ignored.
        """
        faces = 0
        for photo in photos:
            if not photo.ignored.all():
                return
            faces += len(photo.ignored)
        if faces:
            told = f" ({said(odd)})" if odd else ""
            raise UserError(
                f"{self.path}: all of its {faces:,} faces are ignored{told}, and none is left to be found; expected "
                "boxes in pixels of the photo as it is shown; correct the list"
            )


def open_faces(path: Path) -> FaceList:
    """The set at `path`: a list, or the folder of a set.

    WIDER FACE, RetinaFace's list of its photos, CelebA, FDDB, tables of faces and what `headcount prep drawn-faces`
    makes are recognised. A folder with several lists whose photos are there is not: there the path has to be that of a
    list.

    Raises:
        UserError: no list, several, or one that is damaged or names photos that are not there.
    """
    name, found = _find(path)
    content = _READERS[name](found)
    digests = [sha256_of(each) for each in content.files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    ellipses = None if content.ellipses is None else np.split(content.ellipses, content.starts[1:-1])
    exchanged = exchanged_sides(content.landmarks)
    return FaceList(name, found, _Photos(content), digest, content.odd, exchanged, ellipses)


def _find(path: Path) -> tuple[str, Path]:
    """The layout and the list of the set at `path`."""
    if path.is_dir():
        kinds = (
            ("table", find_table),
            ("wider", find_wider),
            ("retinaface", find_retinaface),
            ("celeba", find_celeba),
            ("fddb", find_fddb),
        )
        found = [(name, each) for name, find in kinds for each in find(path)]
    elif path.exists():
        marks = (
            ("table", path.suffix in SUFFIXES),
            ("wider", LIST.fullmatch(path.name)),
            ("retinaface", path.name == RETINAFACE),
            ("celeba", path.name == BOXES),
            ("fddb", FOLD.fullmatch(path.name)),
        )
        found = [(name, path) for name, fits in marks if fits]
    else:
        raise UserError(f"{path}: no such file or folder; name the list or the folder of a set of faces")
    if not found:
        raise UserError(f"{path}: no list of faces that is known; expected {_KNOWN}")
    if len(found) > 1:
        told = ", ".join(str(each) for _, each in found)
        raise UserError(f"{path}: several lists of faces: {told}; name one of them")
    return found[0]
