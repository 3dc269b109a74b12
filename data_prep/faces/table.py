"""The reader of tables of faces: CSV, TSV or parquet, a row for each face.

A photo without a face is a row with empty edges. Five points are ten columns, all or none; empty where unknown. A
column `ignored` of 0 and 1 is optional.
"""

from collections.abc import Iterator
from csv import Error as CsvError
from csv import reader
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.faces.listed import Listed, Rows, check_count, check_list, listed, photo_path
from dist_train.errors import UserError
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line, shown

EDGES = ("left", "top", "right", "bottom")
POINTS = tuple(
    f"{point}_{axis}" for point in ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth") for axis in "xy"
)
PATH, IGNORED = "path", "ignored"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = frozenset({*SEPARATORS, ".parquet"})
NAMES = tuple(f"faces{suffix}" for suffix in sorted(SUFFIXES))
"""Names of the table in a folder of its photos, as `headcount prep drawn-faces` writes it."""
_HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 4 << 20


def find_table(folder: Path) -> list[Path]:
    """The tables beside the photos of a folder."""
    return [path for name in NAMES if (path := folder / name).exists()]


def read_table(path: Path) -> Listed:
    """The faces of a table; paths of photos start from its folder.

    Raises:
        UserError: a column is missing or of another type, a row of another form, or a rule of `listed`.
    """
    check_list(path)
    photos: dict[str, int] = {}
    owners, parts, rows = [np.empty(0, np.int64)], [np.empty((0, 15))], [np.empty(0, np.int64)]
    start = 0
    for batch in _batches(path):
        if not pa.types.is_string(kind := batch.schema.types[0]) and not pa.types.is_large_string(kind):
            raise UserError(f"{path}: column {PATH!r} holds {kind}, expected text")
        names = batch.column(0).to_pylist()
        keys = [photo_path(f"{path}: row {number}", name or "") for number, name in enumerate(names, start + 1)]
        owner = np.array([photos.setdefault(key, len(photos)) for key in keys], np.int64)
        values = np.stack([_numbers(path, batch, name, start) for name in (*EDGES, *POINTS, IGNORED)], 1)
        empty = np.isnan(values[:, :14]).all(1)
        owners.append(owner[~empty])
        parts.append(values[~empty])
        rows.append(np.flatnonzero(~empty) + start + 1)
        start += len(names)
        check_count(str(path), start)
    table, numbers = np.concatenate(parts), np.concatenate(rows)
    marked = table[:, 14]
    if (odd := ~(np.isnan(marked) | np.isin(marked, (0, 1)))).any():
        raise UserError(f"{path}: row {numbers[odd][0]}: {IGNORED} is {marked[odd][0]:g}, expected 0 or 1")
    faces = Rows(
        np.concatenate(owners),
        table[:, :4],
        table[:, 4:14].reshape(-1, 5, 2),
        marked == 1,
        lambda number: f"{path}: row {numbers[number]}",
    )
    return listed(path.parent, ".", list(photos), faces, [path])


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Rows of the table: the column of paths, and those of numbers that are there, as text or numbers."""
    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except UserError:
        raise
    except (OSError, CsvError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: {first_line(error)}") from error


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    check_count(str(path), metadata.num_rows)
    yield from bounded_batches(path, _columns(path, metadata.schema.to_arrow_schema().names))


def _csv(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    separator = SEPARATORS[path.suffix]
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        wanted = _columns(path, next(reader([file.readline(_HEAD_BYTES)], delimiter=separator), []))
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=separator),
        convert_options=csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    ) as batches:
        yield from batches


def _columns(path: Path, names: list[str]) -> list[str]:
    """The columns that are read, which are there once each.

    Raises:
        UserError: one is missing, or there twice.
    """
    points = POINTS if any(name in POINTS for name in names) else ()
    wanted = [PATH, *EDGES, *points]
    for name in (*wanted, IGNORED):
        count = names.count(name)
        if count > 1 or (count == 0 and name != IGNORED):
            found = f"{count} columns {name!r}" if count else f"no column {name!r}"
            told = ", ".join(shown(each) for each in names[:20])
            raise UserError(
                f"{path}: {found} among {told}; expected {PATH}, {', '.join(EDGES)}, and for five points all of "
                f"{', '.join(POINTS)}"
            )
    return [*wanted, IGNORED] if IGNORED in names else wanted


def _numbers(path: Path, batch: pa.RecordBatch, name: str, start: int) -> NDArray[np.float64]:
    """A column as numbers, NaN where it is empty or not there."""
    if name not in batch.schema.names:
        return np.full(batch.num_rows, np.nan)
    column = batch.column(name)
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    try:
        return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # the row that is no number is named below
    for number, value in enumerate(column.to_pylist(), start + 1):
        try:
            float(value or 0)
        except (TypeError, ValueError):
            raise UserError(f"{path}: row {number}: {name} is {shown(value)}, expected a number") from None
    raise UserError(f"{path}: column {name} holds {column.type}, expected numbers")
