"""The writer of tables of faces, in the form that `data_prep.faces.table` and `prep align --landmarks` read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.faces.table import EDGES, PATH, POINTS, SEPARATORS, SUFFIXES
from data_prep.mtcnn.faces import Faces
from dist_train.errors import UserError
from dist_train.runtime.text import shown_name
from dist_train.runtime.written import written

SCORE = "score"
_COLUMNS = (*EDGES, SCORE, *POINTS)
_SCHEMA = pa.schema([(PATH, pa.string()), *((name, pa.float64()) for name in _COLUMNS)])
_ROWS_AT_ONCE = 1 << 14  # of a group of rows in a parquet file, whose description takes room and time
_DIGITS = {SCORE: 5}  # of other columns 2: hundredths of a pixel


class TableFile:
    """A table that is being written: a row a face, a row with empty edges for a photo without one.

    Args:
        writer: takes batches of rows.
        folder: of the table, where paths of photos start.
    """

    def __init__(self, writer: "pa.csv.CSVWriter | pa.parquet.ParquetWriter", folder: Path) -> None:
        self._writer, self._folder = writer, folder
        self._names: list[str] = []
        self._values: list[NDArray[np.float64]] = []

    def add(self, photo: Path, faces: Faces) -> None:
        """Add the faces of a photo, whose path `named` can tell; unknown points, NaN, stay empty."""
        count = len(faces.scores)
        values = np.full((max(count, 1), len(_COLUMNS)), np.nan)
        if count:
            values[:, :4], values[:, 4] = faces.boxes, faces.scores
            values[:, 5:] = faces.landmarks.reshape(count, -1)
        self._names += [named(photo, self._folder)] * len(values)
        self._values.append(values)
        if len(self._names) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory."""
        if not self._names:
            return
        values = np.concatenate(self._values)
        columns = [
            pa.array(np.round(values[:, at], _DIGITS.get(name, 2)), pa.float64(), from_pandas=True)
            for at, name in enumerate(_COLUMNS)
        ]
        self._writer.write_batch(pa.record_batch([pa.array(self._names), *columns], schema=_SCHEMA))
        self._names, self._values = [], []


def named(photo: Path, folder: Path) -> str:
    """The path of a photo as a table in `folder` has it.

    Raises:
        UserError: the photo is not below the folder, or has a name that no table can hold.
    """
    name = os.path.relpath(photo.absolute(), folder.absolute())
    if name.split(os.sep)[0] == os.pardir:
        raise UserError(
            f"{shown_name(str(photo))} is not below {folder.absolute()}, where the paths of the table start; write "
            "the table into a folder that holds all photos"
        )
    if not name.isprintable():
        raise UserError(f"{shown_name(str(photo))}: a name that a table of faces cannot hold; rename the photo")
    return name


def check_name(path: Path) -> None:
    """Look whether a table can have that name.

    Raises:
        UserError: it has another ending, or its folder is not there.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--table {path}: expected a name that ends in {', '.join(sorted(SUFFIXES))}")
    if not path.parent.is_dir():
        raise UserError(f"--table {path}: {path.parent} is no folder; make it, or name another")


@contextmanager
def table_file(path: Path) -> Iterator[TableFile]:
    """A table, that has its name once the block ends; an error leaves nothing behind.

    Raises:
        OSError: the disk refuses.
    """
    from pyarrow import csv, parquet

    with written(path) as file:
        if path.suffix == ".parquet":
            writer = parquet.ParquetWriter(file, _SCHEMA)
        else:
            writer = csv.CSVWriter(file, _SCHEMA, write_options=csv.WriteOptions(delimiter=SEPARATORS[path.suffix]))
        with writer:
            table = TableFile(writer, path.parent)
            yield table
            table.flush()
