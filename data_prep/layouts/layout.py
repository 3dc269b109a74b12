"""What a layout is, and what all layouts need: entries of lists, paths that stay inside, pictures that are there."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dist_train.data.pair_list import Pair
from dist_train.data.text_file import read_text
from dist_train.errors import UserError
from dist_train.runtime.text import shown_name

TRAIN, TEST, ALL = "train", "test", "all"
"""Parts of a set: directories of what `headcount prep import` makes."""
GALLERY, PROBE = "gallery", "probe"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NAMED = 3  # pictures in a message


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a set.

    Attributes:
        path: below the set's folder, with slashes.
        identity: name of what it shows.
        part: of the set, a directory of the output.
        role: "gallery", "probe" or None.
        fields: further facts for the sample's `.json`.
    """

    path: str
    identity: str
    part: str
    role: str | None = None
    fields: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a folder holds.

    Attributes:
        entries: pictures, each path once.
        pairs: verification sets by name: pairs of paths of entries of the part "test", in the order of their folds.
        left_out: what is not taken, and how much of it.
    """

    entries: list[Entry]
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


class Layout(NamedTuple):
    """A row of the table of layouts.

    Attributes:
        name: as `--layout` has it.
        marks: files or directories by any of which a folder is known, for people and for `find_layout`.
        read: what a folder holds; raises `UserError` where a list is missing or malformed.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[Path], Contents]


def rows_of(
    path: Path, fields: int, head: Callable[[list[str]], bool] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The place, for messages, and the fields of each line of a list; lines that `head` knows are skipped.

    Raises:
        UserError: not there, not UTF-8, or a line with another number of fields.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or (head is not None and number <= 2 and head(words)):
            continue
        if len(words) != fields:
            raise UserError(f"{path}: line {number}: {line[:80]!r} has {len(words)} fields, expected {fields}")
        yield f"{path}: line {number}", words


def inside(where: str, base: str, path: str) -> str:
    """A path of a list, which starts at the folder `base` below the set's, as one below the set's folder.

    Raises:
        UserError: it leads out of the set's folder.
    """
    joined = os.path.normpath(os.path.join(base, path))
    if os.path.isabs(joined) or joined.split("/")[0] == ".." or "\0" in joined:
        raise UserError(f"{where}: {shown_name(path)} leads out of the folder; expected a path inside it")
    return joined


def pictures_in(folder: Path, below: str) -> list[str]:
    """Paths below `folder` of the pictures in one of its directories, in the order of their names.

    Raises:
        UserError: no such directory.
    """
    try:
        with os.scandir(folder / below) as found:
            names = sorted(each.name for each in found if each.name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise UserError(f"{folder / below}: {error.strerror}; expected pictures there") from error
    return [os.path.normpath(f"{below}/{name}") for name in names if not name.startswith(".")]


def folders_in(folder: Path, below: str) -> list[str]:
    """Names of the directories in a directory below `folder`, in order; hidden ones are ignored.

    Raises:
        UserError: no such directory.
    """
    try:
        with os.scandir(folder / below) as found:
            return sorted(each.name for each in found if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder / below}: {error.strerror}; expected a directory for each identity there") from error


def of_folders(folder: Path, below: str, part: str, fields: dict[str, str | int] | None = None) -> list[Entry]:
    """The pictures in a directory of directories, each of which is named by its identity."""
    return [
        Entry(path, name, part, None, fields or {})
        for name in folders_in(folder, below)
        for path in pictures_in(folder, f"{below}/{name}")
    ]


def fields_of(pattern: re.Pattern[str], path: str, form: str) -> re.Match[str]:
    """The parts of a picture's file name.

    Raises:
        UserError: it has another form.
    """
    found = pattern.fullmatch(path.rpartition("/")[2])
    if found is None:
        raise UserError(f"{shown_name(path)}: expected a name such as {form}")
    return found


def check_there(folder: Path, contents: Contents) -> None:
    """Look whether all pictures are there, those of the pairs among them.

    Raises:
        UserError: some are not, one is listed twice, or there are none.
    """
    there: dict[str, bool] = {}
    for entry in contents.entries:
        if entry.path in there:
            raise UserError(f"{folder}: {shown_name(entry.path)} is listed twice; correct the list")
        if not (entry.path + entry.identity).isprintable():
            raise UserError(f"{folder}: {shown_name(entry.path)}: the name is not UTF-8 text; rename it")
        there[entry.path] = (folder / entry.path).is_file()
    if not there:
        told = "".join(f"; left out: {count:,} {what}" for what, count in contents.left_out.items())
        raise UserError(f"{folder}: no picture in it{told}; download or unpack the set again")
    paired = {photo for pairs in contents.pairs.values() for pair in pairs for photo in (pair.left, pair.right)}
    there |= dict.fromkeys(sorted(paired - there.keys()), False)
    if missing := [path for path, found in there.items() if not found]:
        told = ", ".join(map(shown_name, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
        raise UserError(
            f"{folder}: {len(missing):,} of {len(there):,} pictures of its lists are not there: {told}; download or "
            "unpack the set again"
        )
