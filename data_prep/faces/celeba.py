"""The reader of CelebA in the wild (Liu, Luo, Wang, Tang, ICCV 2015): two lists and the folder `img_celeba`.

`list_bbox_celeba.txt` and `list_landmarks_celeba.txt` begin with the number of photos and the names of the fields. Each
photo has one face. The pictures of `img_align_celeba` are others: these boxes do not fit them.
"""

from pathlib import Path

import numpy as np

from data_prep.faces.listed import Listed, Rows, check_count, lines_of, listed, numbers, photo_path
from dist_train.errors import UserError
from dist_train.runtime.text import shown

BOXES, LANDMARKS = "list_bbox_celeba.txt", "list_landmarks_celeba.txt"
_PHOTOS = ("img_celeba", "Img/img_celeba")


def find_celeba(folder: Path) -> list[Path]:
    """The lists of boxes in a folder, where the set's archives put them: at most one."""
    return [path for below in (".", "Anno") if (path := folder / below / BOXES).exists()][:1]


def read_celeba(path: Path) -> Listed:
    """The faces of a list of boxes, with the five points of the list beside it, where that is there.

    Raises:
        UserError: a line of another form, lists that differ, or a rule of `listed`.
    """
    root = path.parent.parent if path.parent.name == "Anno" else path.parent
    base = next((each for each in _PHOTOS if (root / each).is_dir()), _PHOTOS[0])
    boxes = _read(path, 4, "`PHOTO x_1 y_1 width height`")
    points_path = path.with_name(LANDMARKS)
    landmarks = None
    if points_path.exists():
        points = _read(points_path, 10, "`PHOTO` and ten numbers")
        if missing := next((name for name in boxes if name not in points), None):
            raise UserError(f"{points_path}: {shown(missing)} of {BOXES} is not in it; the lists are of different sets")
        landmarks = np.array([points[name][1] for name in boxes], np.float64).reshape(-1, 5, 2)
    lines = [line for line, _ in boxes.values()]
    table = np.array([values for _, values in boxes.values()], np.float64).reshape(-1, 4)
    table[:, 2:] += table[:, :2]
    rows = Rows(
        np.arange(len(boxes)),
        table,
        landmarks,
        np.zeros(len(boxes), bool),
        lambda number: f"{path}: line {lines[number]}",
    )
    photos = [photo_path(f"{path}: line {line}", name) for name, (line, _) in boxes.items()]
    return listed(root, base, photos, rows, [path] if landmarks is None else [path, points_path])


def _read(path: Path, fields: int, form: str) -> dict[str, tuple[str, list[float]]]:
    """By photo its line and its numbers."""
    found: dict[str, tuple[str, list[float]]] = {}
    told: int | None = None
    for number, (where, line) in enumerate(lines_of(path)):
        words = line.split()
        if number == 0 and len(words) == 1 and words[0].isdecimal():
            told = int(words[0][:12])
        elif number > 1 or told is None:
            if len(words) != fields + 1:
                raise UserError(f"{where}: {shown(line)} has {len(words)} fields; expected {form}")
            if words[0] in found:
                raise UserError(f"{where}: {shown(words[0])} is listed twice; take one of both out")
            found[words[0]] = where.rpartition(" ")[2], numbers(where, words[1:], form)
            check_count(where, len(found))
    if told is not None and told != len(found):
        raise UserError(f"{path}: its head says {told:,} photos, {len(found):,} follow; the file is cut off")
    return found
