"""The files of IJB-B and IJB-C: which pictures, where the faces are, templates, pairs, galleries and probes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dist_train.errors import UserError

T = TypeVar("T", int, float)

KINDS = ("ijbb", "ijbc")
_LARGEST = 1e6  # pixels of a landmark, and any score
_LOOKUP_BLOCK = 1 << 20  # ids looked up at a time; there are 31 million in IJB-C's pairs


class Layout(NamedTuple):
    """The pictures of a set and the templates that they belong to.

    Attributes:
        kind: `ijbb` or `ijbc`.
        root: directory that holds `meta` and `loose_crop`.
        names: file names of the pictures, [N].
        landmarks: float64 [N, 5, 2], pixels in the loose crops.
        scores: of the detector, float32 [N].
        picture: number of the picture of each row, sorted, [R]; a picture may belong to several templates.
        template: number of the template of each row, [R].
        weight: detector score, or 1, / pictures of the row's medium in its template, float32 [R].
        template_ids: the set's own ids of templates 0 .. T - 1, sorted.
    """

    kind: str
    root: Path
    names: list[str]
    landmarks: np.ndarray
    scores: np.ndarray
    picture: np.ndarray
    template: np.ndarray
    weight: np.ndarray
    template_ids: np.ndarray


class Pairs(NamedTuple):
    """The 1:1 protocol.

    Attributes:
        left: number of a template, int32 [n].
        right: number of the other, int32 [n].
        same: whether both are the same identity, bool [n].
    """

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray


class Subjects(NamedTuple):
    """A list of the 1:N protocol: templates' numbers int32 [n] and their subjects int64 [n]."""

    template: np.ndarray
    subject: np.ndarray


def ijb_kind(root: Path) -> str | None:
    """`ijbb` or `ijbc` if `root` holds such a set, else None."""
    return next((kind for kind in KINDS if (root / "meta" / f"{kind}_face_tid_mid.txt").exists()), None)


def check_layout(root: Path) -> None:
    """Look whether a set's lists and pictures are there, without reading them.

    Raises:
        UserError: something is missing.
    """
    kind = _known_kind(root)
    for part in (f"meta/{kind}_name_5pts_score.txt", f"meta/{kind}_template_pair_label.txt", "loose_crop"):
        if not (root / part).exists():
            raise UserError(f"{root}: {part} of {kind} is not there; fetch the whole set, or correct the path")


def _known_kind(root: Path) -> str:
    kind = ijb_kind(root)
    if kind is None:
        raise UserError(f"{root}: no IJB set: meta/ijbb_face_tid_mid.txt or meta/ijbc_face_tid_mid.txt is not there")
    return kind


def read_layout(root: Path, scored: bool = True) -> Layout:
    """Read which pictures a set has, where the faces in them are, and their templates.

    Args:
        root: directory of the set.
        scored: whether pictures weigh by their detector score; else all of a medium weigh the same.

    Raises:
        UserError: a file is missing, empty or malformed, or a template's picture is not listed.
    """
    kind = _known_kind(root)
    faces = root / "meta" / f"{kind}_name_5pts_score.txt"
    names, values = [], []
    for number, words in _lines(faces, 12):
        names.append(_inside(faces, number, words[0]))
        values.append(_parsed(_coordinate, faces, number, words[1:]))
    table = np.array(values)
    index = {name: number for number, name in enumerate(names)}
    members = root / "meta" / f"{kind}_face_tid_mid.txt"
    rows = []
    for number, words in _lines(members, 3):
        if words[0] not in index:
            raise UserError(f"{members}, line {number}: picture {words[0]} is not in {faces.name}")
        rows.append((index[words[0]], *_parsed(_id, members, number, words[1:])))
    picture, template_id, media = np.array(sorted(rows), dtype=np.int64).T
    template_ids, template = np.unique(template_id, return_inverse=True)
    _, medium, counts = np.unique(np.stack([template, media]), axis=1, return_inverse=True, return_counts=True)
    weight = (table[picture, 10] if scored else 1) / counts[medium]
    return Layout(
        kind,
        root,
        names,
        table[:, :10].reshape(-1, 5, 2),
        table[:, 10].astype(np.float32),
        picture,
        template,
        weight.astype(np.float32),
        template_ids,
    )


def _lines(path: Path, words: int) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                parts = line.split()
                if len(parts) != words:
                    raise UserError(f"{path}, line {number}: {len(parts)} words, expected {words}")
                yield number, parts
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after line {number}: not UTF-8 text; the file is damaged") from error
    if not number:
        raise UserError(f"{path}: it is empty")


def _inside(path: Path, number: int, name: str) -> str:
    """A picture's name, if it stays in the folder of pictures."""
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{path}, line {number}: picture {name!r} is not in loose_crop; a list names only pictures there"
        )
    return name


def _coordinate(word: str) -> float:
    """A landmark's coordinate or a score: a number that can be computed with."""
    value = float(word)
    if not abs(value) <= _LARGEST:  # nan too
        raise ValueError(f"{word!r:.40} is no coordinate or score, expected a number between -1e6 and 1e6")
    return value


def _id(word: str) -> int:
    """A template's or a medium's number."""
    value = int(word)
    if abs(value) >= 1 << 63:
        raise ValueError(f"{word!r:.40} is no id, expected a number of 64 bits")
    return value


def _parsed(kind: Callable[[str], T], path: Path, number: int, words: list[str]) -> list[T]:
    try:
        return [kind(word) for word in words]
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}") from error


def read_pairs(layout: Layout) -> Pairs:
    """Read the 1:1 protocol.

    Raises:
        UserError: missing or malformed, or a template without pictures.
    """
    import pyarrow as pa
    from pyarrow import csv

    path = layout.root / "meta" / f"{layout.kind}_template_pair_label.txt"
    types = {"left": pa.int32(), "right": pa.int32(), "same": pa.int8()}
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=list(types)),
            csv.ParseOptions(delimiter=" "),
            csv.ConvertOptions(column_types=types),
        )
    except OSError as error:
        raise UserError(f"{path}: {error}") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: expected lines of two templates and 0 or 1: {error}") from error
    left, right, same = (table[name].to_numpy() for name in types)
    if ((same != 0) & (same != 1)).any():
        raise UserError(f"{path}: a label that is neither 0 nor 1")
    return Pairs(_numbers(layout, left, path), _numbers(layout, right, path), same.astype(bool))


def _numbers(layout: Layout, ids: np.ndarray, path: Path) -> np.ndarray:
    """Numbers of templates from the set's own ids."""
    numbers = np.empty(len(ids), dtype=np.int32)
    last = len(layout.template_ids) - 1
    for start in range(0, len(ids), _LOOKUP_BLOCK):
        block = ids[start : start + _LOOKUP_BLOCK]
        found = np.searchsorted(layout.template_ids, block).clip(max=last)
        missing = block[layout.template_ids[found] != block]
        if len(missing):
            raise UserError(
                f"{path}: template {missing[0]} has no pictures in {layout.kind}_face_tid_mid.txt; "
                "the files are of different sets, or one is cut off"
            )
        numbers[start : start + len(block)] = found
    return numbers


def read_subjects(layout: Layout, name: str) -> Subjects | None:
    """Read a list of the 1:N protocol; None where there is no such file.

    Raises:
        UserError: malformed, a template of two subjects, or one without pictures.
    """
    path = layout.root / "meta" / f"{layout.kind}_1N_{name}.csv"
    if not path.exists():
        return None
    rows: dict[int, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; the file is damaged") from error
    for number, line in enumerate(lines, start=2):
        words = line.split(",")
        if len(words) < 2 or not all(re.fullmatch(r"[0-9]{1,18}", word.strip()) for word in words[:2]):
            raise UserError(f"{path}, line {number}: {line[:60]!r}, expected template,subject,...")
        template, subject = int(words[0]), int(words[1])
        if rows.setdefault(template, subject) != subject:  # one line per picture, the same subject in each
            raise UserError(f"{path}, line {number}: template {template} is of subject {rows[template]} and {subject}")
    if not rows:
        raise UserError(f"{path}: it lists no templates")
    return Subjects(_numbers(layout, np.array(list(rows)), path), np.array(list(rows.values())))
