"""The reader of FDDB (Jain, Learned-Miller, UMass 2010): `FDDB-fold-01-ellipseList.txt` and folders of photos.

A photo is three kinds of lines: its path without `.jpg`, the number of its faces, and for each the ellipse
`major-radius minor-radius angle center-x center-y 1`, in pixels and radians. Several folds are one set.
"""

import re
from pathlib import Path

import numpy as np

from data_prep.faces.listed import Listed, Rows, check_count, lines_of, listed, next_line, numbers, photo_path
from dist_train.errors import UserError
from dist_train.runtime.text import shown

FOLD = re.compile(r"FDDB-fold-[0-9]{2}-ellipseList\.txt")
_FOLDS = "FDDB-folds"
_FORM = "`major-radius minor-radius angle center-x center-y 1`"
_COUNT = re.compile(r"[0-9]{1,8}")


def find_fddb(folder: Path) -> list[Path]:
    """The folder, itself or one in it, that holds the folds: at most one."""
    return [path for path in (folder, folder / _FOLDS) if any(path.glob("FDDB-fold-[0-9][0-9]-ellipseList.txt"))][:1]


def read_fddb(path: Path) -> Listed:
    """The faces of a fold, or of all folds in a folder; boxes are those around the ellipses.

    Raises:
        UserError: a line of another form, cut off, or a rule of `listed`.
    """
    folds = sorted(path.glob("FDDB-fold-[0-9][0-9]-ellipseList.txt")) if path.is_dir() else [path]
    folder = folds[0].parent
    root = folder.parent if folder.name == _FOLDS else folder
    base = "originalPics" if (root / "originalPics").is_dir() else "."
    photos: dict[str, None] = {}
    photo: list[int] = []
    values: list[list[float]] = []
    places: list[str] = []
    for fold in folds:
        lines = lines_of(fold)
        for where, line in lines:
            name = photo_path(where, f"{line}.jpg")
            if name in photos:
                raise UserError(f"{where}: {shown(line)} is listed twice; take one of both out")
            photos[name] = None
            where, line = next_line(lines, fold, name)
            if not _COUNT.fullmatch(line):
                raise UserError(f"{where}: {shown(line)}; expected the number of faces in {name}")
            for _ in range(int(line)):
                where, line = next_line(lines, fold, name)
                words = line.split()
                if len(words) != 6:
                    raise UserError(f"{where}: {shown(line)} has {len(words)} fields; expected {_FORM}")
                photo.append(len(photos) - 1)
                values.append(numbers(where, words[:5], _FORM))
                if not min(values[-1][:2]) > 0:
                    raise UserError(f"{where}: radii {words[0]}, {words[1]}; expected numbers above 0, in pixels")
                places.append(where)
                check_count(where, len(values))
    ellipses = np.array(values, np.float64).reshape(-1, 5)
    rows = Rows(np.array(photo, np.int64), around(ellipses), None, np.zeros(len(values), bool), lambda n: places[n])
    return listed(root, base, list(photos), rows, folds)._replace(ellipses=ellipses)


def around(ellipses: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] around ellipses [n, 5]; the angle is that of the major axis, which an upright face has at pi / 2."""
    major, minor, angle, x, y = ellipses.T
    wide = np.hypot(major * np.cos(angle), minor * np.sin(angle))
    high = np.hypot(major * np.sin(angle), minor * np.cos(angle))
    return np.array([x - wide, y - high, x + wide, y + high]).T
