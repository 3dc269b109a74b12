"""A table of landmarks in a job's own files: sorted by photo, mapped into memory by every worker.

A photo is known by the 128 bits of a digest of its name: among 10 million names two are alike with a probability of
1e-25. A row names a photo as `rejects.parquet` does (`TAR:MEMBER`), or, of a photo in a tar, by its member alone; of a
path written in several ways (`./a.jpg`, `a.jpg`) all are the same.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.sides import exchanged_sides
from data_prep.landmarks.table import LandmarkTable, read_rows
from dist_train.errors import UserError, WorkError
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.files import map_array
from dist_train.runtime.text import shown
from dist_train.runtime.written import written

logger = logging.getLogger(__name__)

_MEMBER = re.compile(r"^[^/]*?\.tar:(.+)$", re.DOTALL)
_KEYS, _VALUES = "landmarks-keys.npy", "landmarks-values.npy"
_WIDTH = 14  # numbers of a row: box and points


class StoredLandmarks:
    """The table in the directory of a job's own files.

    Raises:
        WorkError: missing or damaged.
    """

    def __init__(self, home: Path) -> None:
        try:
            self._keys, self._values = map_array(home / _KEYS, "r"), map_array(home / _VALUES, "r")
            if self._keys.dtype != np.uint64 or self._keys.shape != (len(self._values), 2):
                raise ValueError("its keys are not those of its rows")
            if self._values.dtype != np.float32 or self._values.shape[1:] != (_WIDTH,):
                raise ValueError("its rows are not boxes and points")
        except (OSError, ValueError) as error:
            raise WorkError(
                f"{home / _KEYS}: damaged ({error}); use another OUT, where the table is read anew"
            ) from error

    def __len__(self) -> int:
        return len(self._keys)

    def row_of(self, photo: str) -> int | None:
        """Number of a photo's row; None where the table does not have it."""
        row = self._find(photo)
        member = _MEMBER.match(photo)
        return row if row is not None or member is None else self._find(member[1])

    def both_rows(self, photo: str) -> bool:
        """Whether a photo in a tar has a row by its whole name, and one by its member's."""
        member = _MEMBER.match(photo)
        return member is not None and self._find(photo) is not None and self._find(member[1]) is not None

    def __getitem__(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Box [4], NaN without, and points [5, 2] of a row."""
        values = np.array(self._values[row])
        return values[:4], values[4:].reshape(5, 2)

    def _find(self, name: str) -> int | None:
        first, second = _key(name)
        start = int(np.searchsorted(self._keys[:, 0], np.uint64(first)))
        while start < len(self._keys) and int(self._keys[start, 0]) == first:
            if int(self._keys[start, 1]) == second:
                return start
            start += 1
        return None


def store_table(table: LandmarkTable, home: Path) -> None:
    """Write a table into the directory of a job's own files.

    Raises:
        UserError: it has two rows of one photo, or none, or has changed since it was opened.
    """
    keys, values = [], []
    for paths, rows in read_rows(table.path):
        keys.append(np.array([_key(path) for path in paths], np.uint64).reshape(-1, 2))
        values.append(rows)
    if not sum(map(len, keys)):
        raise UserError(f"landmarks {table.path}: no row in it")
    if sha256_of(table.path) != table.sha256:
        raise UserError(f"landmarks {table.path}: was changed meanwhile; give the same command again")
    every = np.concatenate(keys)
    order = np.lexsort((every[:, 1], every[:, 0]))
    every = every[order]
    if (twice := np.flatnonzero((every[1:] == every[:-1]).all(1))).size:
        raise UserError(
            f"landmarks {table.path}: {twice.size:,} photos have two rows, e.g. {_name_of(table, every[twice[0]])}; "
            "keep one row a photo: that of the face it is about"
        )
    stored = np.concatenate(values)[order]
    if exchanged := exchanged_sides(stored[:, 4:].reshape(-1, 5, 2)):
        logger.warning("landmarks %s: %s", table.path, exchanged)
    for name, array in ((_KEYS, every), (_VALUES, stored)):
        with written(home / name) as file:
            np.save(file, array)


def check_photos(table: LandmarkTable, home: Path, photos: Iterable[str]) -> None:
    """Compare a stored table with the photos of a job; rows of photos that are not there are counted in the log.

    Raises:
        UserError: a photo has two rows, or a row could be of several photos, or none is of any.
    """
    stored = StoredLandmarks(home)
    of_photo = np.zeros((len(stored), 2), np.uint64)  # key of the photo that a row was found for
    used = np.zeros(len(stored), bool)
    for photo in photos:
        row = stored.row_of(photo)
        if row is None:
            continue
        if stored.both_rows(photo):
            raise UserError(f"landmarks {table.path}: photo {shown(photo)} has two rows, one by its member's name")
        key = np.array(_key(photo), np.uint64)
        if used[row] and (of_photo[row] != key).any():
            raise UserError(
                f"landmarks {table.path}: one row could be of {shown(photo)} and of a photo of the same name in "
                "another tar; write TAR:MEMBER into the table"
            )
        used[row], of_photo[row] = True, key
    if not used.any():
        raise UserError(
            f"landmarks {table.path}: none of its {len(stored):,} rows is of a photo of the source; paths are written "
            "as in rejects.parquet: from the source's folder on, or by the member in a tar"
        )
    if unused := int((~used).sum()):
        logger.warning(
            "%s: %s of %s rows are of photos that are not in the source", table.path, f"{unused:,}", f"{len(stored):,}"
        )


def _key(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(_plain(name).encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _plain(name: str) -> str:
    """A photo's name with its path, or that of its member, in the shortest form; addresses stay as they are."""
    if "://" in name:
        return name
    member = _MEMBER.match(name)
    start = 0 if member is None else member.start(1)
    return name[:start] + os.path.normpath(name[start:])


def _name_of(table: LandmarkTable, key: NDArray[np.uint64]) -> str:
    """The path of a key, found again in the table."""
    wanted = int(key[0]), int(key[1])
    return next((shown(path) for paths, _ in read_rows(table.path) for path in paths if _key(path) == wanted), "?")
