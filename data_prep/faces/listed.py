"""What readers of lists of faces share: bounded lines, photos that stay inside a folder, rules for odd faces."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.errors import UserError
from dist_train.runtime.text import shown, shown_name

MAX_LIST_BYTES = 1 << 30  # CelebA's two lists have 21 million bytes
MAX_FACES = 20_000_000
LARGEST_PX = 1e6  # of a coordinate
BEYOND_BOX = 0.5
"""Share of a box's width and height by which its five points may lie outside of it; those of profiles do."""
INVALID, NO_SIZE, POINTS_OUTSIDE = "marked invalid", "boxes of no size", "five points far outside of their box"
OUTSIDE = "boxes outside of their picture"
"""Seen when the picture is opened."""
_MAX_LINE_BYTES = 8192
_MAX_PATH_BYTES = 4096
_NAMED = 3  # photos in a message


class Listed(NamedTuple):
    """The faces of a list, photo by photo.

    Attributes:
        folder: where the paths of photos start.
        photos: P paths below `folder`, each once.
        starts: int64 [P + 1]; photo p has the faces starts[p] .. starts[p + 1].
        boxes: float32 [F, 4]: left, top, right, bottom in pixels; right and bottom are exclusive.
        landmarks: float32 [F, 5, 2] in the order of `data_prep.mtcnn.faces.Faces`, NaN where unknown.
        ignored: bool [F]: neither face nor background.
        files: the lists.
        odd: number of faces by what is odd about them, see the rules of `listed`.
        ellipses: float64 [F, 5]: major and minor radius, angle of the major axis, center; None where faces are boxes.
    """

    folder: Path
    photos: list[str]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    ignored: NDArray[np.bool_]
    files: tuple[Path, ...]
    odd: dict[str, int]
    ellipses: NDArray[np.float64] | None = None


class Rows(NamedTuple):
    """Faces in the order of a list.

    Attributes:
        photo: number of the photo of each face, int64 [F].
        boxes: float64 [F, 4]: left, top, right, bottom.
        landmarks: float64 [F, 5, 2], all ten NaN where unknown; None: of no face.
        invalid: bool [F], as the list marks them.
        where: the place of a face in the list, for messages, e.g. `faces.csv: row 7`.
    """

    photo: NDArray[np.int64]
    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64] | None
    invalid: NDArray[np.bool_]
    where: Callable[[int], str]


def listed(root: Path, base: str, photos: list[str], rows: Rows, files: Sequence[Path]) -> Listed:
    """The faces of a list, sorted by photo, and what is odd among them.

    Marked faces and boxes of no size are ignored: neither face nor background. Five points of which one lies farther
    outside of the box than `BEYOND_BOX` become unknown; the face stays.

    Args:
        root: folder of the set, which holds all that the list names.
        base: folder below it where the paths of photos start.
        photos: their paths, as `photo_path` gives them.
        rows: the faces.
        files: the lists.

    Raises:
        UserError: a box that ends before it begins, a coordinate that is none, some of five points, a photo that is
            not there or not inside of `root`, no photo at all.
    """
    boxes = rows.boxes.reshape(-1, 4)
    points = np.full((len(boxes), 5, 2), np.nan) if rows.landmarks is None else rows.landmarks
    _refuse_unlike(boxes, points, rows.where)
    _check_photos(root, root / base, photos, files)
    size = boxes[:, 2:] - boxes[:, :2]
    flat = (size == 0).any(1)
    margin = BEYOND_BOX * size
    with np.errstate(invalid="ignore"):
        far = (points < (boxes[:, :2] - margin)[:, None]) | (points > (boxes[:, 2:] + margin)[:, None])
    lost = far.any((1, 2)) & ~flat
    points = np.where((lost | flat)[:, None, None], np.nan, points)
    order = np.argsort(rows.photo, kind="stable")
    counts = {INVALID: rows.invalid, NO_SIZE: flat & ~rows.invalid, POINTS_OUTSIDE: lost}
    return Listed(
        root / base,
        photos,
        np.searchsorted(rows.photo[order], np.arange(len(photos) + 1)),
        boxes[order].astype(np.float32),
        points[order].astype(np.float32),
        (rows.invalid | flat)[order],
        tuple(files),
        {name: int(found.sum()) for name, found in counts.items() if found.any()},
    )


def said(odd: Mapping[str, int]) -> str:
    """Numbers of odd faces by kind, for a message."""
    return ", ".join(f"{kind} {count:,}" for kind, count in odd.items())


def _refuse_unlike(boxes: NDArray[np.float64], points: NDArray[np.float64], where: Callable[[int], str]) -> None:
    """Raise for the first face whose numbers cannot be a face's."""
    with np.errstate(invalid="ignore"):
        unlike = ~(np.abs(boxes) <= LARGEST_PX).all(1)
        far = np.abs(points) > LARGEST_PX
    if unlike.any():
        at = int(unlike.argmax())
        told = ", ".join(f"{value:g}" for value in boxes[at])
        raise UserError(f"{where(at)}: box {told}; expected numbers of at most {LARGEST_PX:,.0f} pixels")
    turned = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if turned.any():
        at = int(turned.argmax())
        left, top, right, bottom = boxes[at]
        raise UserError(
            f"{where(at)}: the box from {left:g}, {top:g} ends before that, at {right:g}, {bottom:g}; "
            "expected a width and a height of 0 or more, and right and bottom edges in a table"
        )
    unknown = np.isnan(points).reshape(len(points), 10)
    some = (unknown.any(1) & ~unknown.all(1)) | far.any((1, 2))
    if some.any():
        at = int(some.argmax())
        told = ", ".join(f"{value:g}" for value in points[at].flat)
        raise UserError(f"{where(at)}: five points {told}; expected ten numbers in pixels, or none")


def _check_photos(root: Path, start: Path, photos: list[str], files: Sequence[Path]) -> None:
    """Look whether all photos, whose paths begin at `start`, are files below `root`, links followed.

    Raises:
        UserError: one is not, or a link leads out.
    """
    if not photos:
        raise UserError(f"{files[0]}: no photo in it; expected the list of a set of faces")
    real_root = os.path.realpath(root)
    inside: dict[str, bool] = {}  # by folder, since a file that is no link is where its folder is
    missing = []
    for photo in photos:
        full = os.path.join(start, photo)
        folder = os.path.dirname(full)
        if folder not in inside:
            inside[folder] = _below(real_root, folder)
        if not inside[folder] or (os.path.islink(full) and not _below(real_root, full)):
            raise UserError(f"{full}: a link that leads out of {root}; put the photos there, or move the list to them")
        if not os.path.isfile(full):
            missing.append(photo)
    if missing:
        told = ", ".join(map(shown_name, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
        raise UserError(
            f"{files[0]}: {len(missing):,} of {len(photos):,} photos of the list are not in {start}: {told}; unpack "
            "the set again, or take their lines out of the list"
        )


def _below(real_root: str, path: str) -> bool:
    found = os.path.realpath(path)
    return found == real_root or found.startswith(real_root.rstrip("/") + "/")


def photo_path(where: str, name: str) -> str:
    """A photo's path in a list, as one that stays below the folder where it starts.

    Raises:
        UserError: empty, too long, or it leads out.
    """
    joined = os.path.normpath(name)
    wrong = ""
    if not name or not name.isprintable() or len(name.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        wrong = f"photo {shown(name)} is no path"
    elif os.path.isabs(joined) or joined.split("/")[0] == ".." or joined == ".":
        wrong = f"photo {shown(name)} leads out of the folder"
    if wrong:
        raise UserError(f"{where}: {wrong}; expected one below the folder of photos")
    return joined


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The place, for messages, and the content of each line of a list that has one, one at a time.

    Raises:
        UserError: no file, not UTF-8, too large, or a line too long.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            check_list(path)
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}: line {number}"
                if len(line) > _MAX_LINE_BYTES:
                    raise UserError(f"{where} has more than {_MAX_LINE_BYTES} bytes; expected the list of a set")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise UserError(f"{where} is not UTF-8; expected the list of a set") from error
                if text:
                    yield where, text
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def next_line(lines: Iterator[tuple[str, str]], path: Path, photo: str) -> tuple[str, str]:
    """The place and the content of the next line, which there has to be.

    Raises:
        UserError: the list ends before all faces of a photo.
    """
    found = next(lines, None)
    if found is None:
        raise UserError(f"{path}: it ends before all faces of {photo}; the file is cut off")
    return found


def check_list(path: Path) -> None:
    """Look whether a list is a file of a size that is read.

    Raises:
        UserError: it is not.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected a list of faces")
    if (size := path.stat().st_size) > MAX_LIST_BYTES:
        raise UserError(f"{path}: {size:,} bytes; expected at most {MAX_LIST_BYTES:,}; cut the list in parts")


def numbers(where: str, words: Sequence[str], form: str) -> list[float]:
    """The numbers in fields of a line; not-a-number and infinity are refused by `listed`.

    Raises:
        UserError: one is no number; `form` says what the line should be.
    """
    try:
        return [float(word) for word in words]
    except ValueError:
        raise UserError(f"{where}: {shown(' '.join(words))}; expected {form}") from None


def check_count(where: str, faces: int) -> None:
    """Look whether a list is one that memory holds.

    Raises:
        UserError: it has too many faces.
    """
    if faces > MAX_FACES:
        raise UserError(f"{where}: more than {MAX_FACES:,} faces; cut the list in parts")
