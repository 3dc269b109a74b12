"""A set of photos with faces at known places, whatever list it came with."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.celeba import BOXES, find_celeba, read_celeba
from data_prep.faces.fddb import FOLD, find_fddb, read_fddb
from data_prep.faces.listed import Listed
from data_prep.faces.retinaface import LIST as RETINAFACE
from data_prep.faces.retinaface import find_retinaface, read_retinaface
from data_prep.faces.table import NAMES, SUFFIXES, find_table, read_table
from data_prep.faces.wider import LIST, find_wider, read_wider
from dist_train.errors import UserError
from dist_train.runtime.digest import sha256_of

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
        ellipses: of each photo its faces' major and minor radius, angle and center, [n, 5]; None where faces are boxes.
    """

    name: str
    path: Path
    photos: Sequence[AnnotatedPhoto]
    digest: str
    odd: dict[str, int]
    ellipses: list[NDArray[np.float64]] | None = None


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
    return FaceList(name, found, _Photos(content), digest, content.odd, ellipses)


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
