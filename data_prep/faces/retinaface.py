"""The reader of RetinaFace's `label.txt` (Deng et al., CVPR 2020): WIDER FACE's photos with five points of many faces.

A photo is a line `# PATH`, and a line for each of its faces: `left top width height`, then for left and right eye, nose
and both corners of the mouth `x y mark`, then a quality. Points that were not marked are -1. Lists without points, as
that of the validation part, have lines of the four numbers alone.
"""

from pathlib import Path

import numpy as np

from data_prep.faces.listed import Listed, Rows, check_count, lines_of, listed, numbers, photo_path
from dist_train.errors import UserError
from dist_train.runtime.text import shown

LIST = "label.txt"
_MARK = "#"
_FORM = "`left top width height`, five times `x y mark`, and a quality; or the first four alone"
_FIELDS = 20
_PLAIN = 4
_UNKNOWN = -1
_FOLDERS = ("images", "WIDER_train/images", "WIDER_val/images", ".")


def find_retinaface(folder: Path) -> list[Path]:
    """The lists in a folder: its own, or those of `train` and `val` below it whose photos are there."""
    found = [path for below in (".", "train", "val") if (path := folder / below / LIST).is_file()]
    with_photos = [path for path in found if _folder_of(path) is not None]
    return with_photos or found


def read_retinaface(path: Path) -> Listed:
    """The faces of a list, whose photos lie in `images/` beside it.

    Raises:
        UserError: a line of another form, a face before any photo, or a rule of `listed`.
    """
    photos: list[str] = []
    seen: set[str] = set()
    photo: list[int] = []
    values: list[list[float]] = []
    places: list[int] = []
    for where, line in lines_of(path):
        if line.startswith(_MARK):
            name = photo_path(where, line[len(_MARK) :].strip())
            if name in seen:
                raise UserError(f"{where}: {shown(name)} is listed twice; take one of both out")
            seen.add(name)
            photos.append(name)
            continue
        if not photos:
            raise UserError(f"{where}: {shown(line)}; expected `# PATH` of a photo before its faces")
        words = line.split()
        if len(words) not in (_PLAIN, _FIELDS):
            raise UserError(f"{where}: {shown(line)} has {len(words)} fields; expected {_FORM}")
        found = numbers(where, words, _FORM)
        photo.append(len(photos) - 1)
        values.append(found + [_UNKNOWN] * (_FIELDS - len(found)))
        places.append(int(where.rpartition(" ")[2]))
        check_count(where, len(values))
    table = np.array(values, np.float64).reshape(-1, _FIELDS)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
    points = table[:, 4:19].reshape(-1, 5, 3)[:, :, :2].copy()
    points[(points == _UNKNOWN).all((1, 2))] = np.nan
    rows = Rows(
        np.array(photo, np.int64),
        boxes,
        points,
        np.zeros(len(table), bool),
        lambda number: f"{path}: line {places[number]}",
    )
    return listed(path.parent, _folder_of(path) or _FOLDERS[0], photos, rows, [path])


def _folder_of(path: Path) -> str | None:
    """The folder below that of a list in which the list's first photo lies; None: in none."""
    first = next(((where, line) for where, line in lines_of(path) if line.startswith(_MARK)), None)
    if first is None:
        return None
    name = photo_path(first[0], first[1][len(_MARK) :].strip())
    return next((base for base in _FOLDERS if (path.parent / base / name).is_file()), None)
