"""The reader of WIDER FACE (Yang, Luo, Loy, Tang, CVPR 2016): `wider_face_train_bbx_gt.txt` and folders of photos.

A photo is three kinds of lines: its path, the number of its faces, and for each face `left top width height blur
expression illumination invalid occlusion pose`. A photo without a face has 0 and a line of zeros.
"""

import re
from pathlib import Path

import numpy as np

from data_prep.faces.listed import Listed, Rows, check_count, lines_of, listed, next_line, numbers, photo_path
from dist_train.errors import UserError
from dist_train.runtime.text import shown

LIST = re.compile(r"wider_face_(\w+)_bbx_gt\.txt")
_SPLIT = "wider_face_split"
_FORM = "`left top width height blur expression illumination invalid occlusion pose`"
_COUNT = re.compile(r"[0-9]{1,8}")


def find_wider(folder: Path) -> list[Path]:
    """The lists in a folder whose photos are there too; without any such, all lists in it."""
    found = [path for below in (folder, folder / _SPLIT) for path in sorted(below.glob("wider_face_*_bbx_gt.txt"))]
    with_photos = [path for path in found if _photos_of(path) is not None]
    return with_photos or found


def read_wider(path: Path) -> Listed:
    """The faces of a list, whose photos lie beside it or beside its folder, as the set's archives unpack.

    Raises:
        UserError: a line of another form, cut off, or a rule of `listed`.
    """
    root, base = _photos_of(path) or (_root(path), ".")
    photos: list[str] = []
    seen: set[str] = set()
    photo: list[int] = []
    values: list[list[float]] = []
    places: list[int] = []
    empty = False  # the photo before has no face: a line of zeros may stand for it
    lines = lines_of(path)
    for where, line in lines:
        if empty and set(line.split()) == {"0"}:
            empty = False
            continue
        name = photo_path(where, line)
        if name in seen:
            raise UserError(f"{where}: {shown(line)} is listed twice; take one of both out")
        seen.add(name)
        photos.append(name)
        where, line = next_line(lines, path, name)
        if not _COUNT.fullmatch(line):
            raise UserError(f"{where}: {shown(line)}; expected the number of faces in {name}")
        empty = int(line) == 0
        for _ in range(int(line)):
            where, line = next_line(lines, path, name)
            words = line.split()
            if len(words) != 10:
                raise UserError(f"{where}: {shown(line)} has {len(words)} fields; expected {_FORM}")
            photo.append(len(photos) - 1)
            values.append(numbers(where, words, _FORM))
            places.append(int(where.rpartition(" ")[2]))
            check_count(where, len(values))
    table = np.array(values, np.float64).reshape(-1, 10)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
    rows = Rows(
        np.array(photo, np.int64), boxes, None, table[:, 7] == 1, lambda number: f"{path}: line {places[number]}"
    )
    return listed(root, base, photos, rows, [path])


def _root(path: Path) -> Path:
    return path.parent.parent if path.parent.name == _SPLIT else path.parent


def _photos_of(path: Path) -> tuple[Path, str] | None:
    """The root, and the folder below it in which the first photo of a list lies; None: in none."""
    root = _root(path)
    match = LIST.fullmatch(path.name)
    first = next(iter(lines_of(path)), None)
    if match is None or first is None:
        return None
    name = photo_path(*first)
    for base in (f"WIDER_{match[1]}/images", f"WIDER_{match[1]}", "images", "."):
        if (root / base / name).is_file():
            return root, base
    return None
