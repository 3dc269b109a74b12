"""Lists of pairs of photos: LFW's, or a table with two columns of paths and a flag."""

import io
import re
from collections.abc import Iterator
from csv import Error as CsvError
from csv import reader
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from dist_train.data.text_file import read_bytes, read_text
from dist_train.errors import UserError
from dist_train.runtime.text import first_line, shown

_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_HEAD_BYTES = 1 << 20
_MOST_PAIRS = 1 << 24
_MOST_BYTES = 1 << 30  # of text in a table, which may hold one value for many rows
_MOST_LINE = 8192  # characters of a line of LFW's, and of a path in a table
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_TABLES = frozenset({*_SEPARATORS, ".parquet"})


class Pair(NamedTuple):
    """Two photos of a list.

    Attributes:
        left: path of the first photo; paths of LFW's lists have no suffix, `Name/Name_0001`.
        right: path of the second photo.
        same: whether they show the same person.
    """

    left: str
    right: str
    same: bool


class Columns(NamedTuple):
    """Names of a table's columns."""

    left: str = "left"
    right: str = "right"
    same: str = "same"


COLUMNS = Columns()
_NUMBER = re.compile("0*[1-9][0-9]{0,8}")


def read_pairs(path: Path, columns: Columns = COLUMNS) -> list[Pair]:
    """The pairs in a list, in its order; a list without folds alternates between pairs of one person and of two.

    A `.csv`, `.tsv` or `.parquet` is a table, anything else LFW's form: `pairs.txt`, whose head has the number of folds
    and of pairs of each kind in a fold, or `pairsDevTest.txt`, whose head has the number of pairs alone. Then come tab
    separated lines, in every fold first `NAME I J` (the same person), then `NAME1 I NAME2 J`. A list without folds has
    all pairs of one kind first: a protocol that cuts folds by position would find a single kind in each fold.

    Raises:
        UserError: the list cannot be read, or a line has another form; the message has the line's number.
    """
    pairs = list(_table(path, columns) if path.suffix in _TABLES else _lfw(path))
    if not pairs:
        raise UserError(f"{path}: no pair in it")
    return pairs


def _lfw(path: Path) -> list[Pair]:
    lines = _lines(path)
    head = lines[0].split()
    if len(head) not in (1, 2) or not all(map(_NUMBER.fullmatch, head)):
        raise UserError(
            f"{path}: line 1: {shown(lines[0])}; expected the number of folds and of pairs of each kind in a fold, as "
            "`10 300`, or the latter alone; a table is named .csv, .tsv or .parquet"
        )
    folds, each = (1, *map(int, head))[-2:]
    if len(lines) - 1 != 2 * folds * each:
        raise UserError(
            f"{path}: its head {shown(lines[0])} stands for {2 * folds * each} pairs, {len(lines) - 1} lines follow; "
            "the file is cut off, or its head is wrong"
        )
    pairs = []
    for number, line in enumerate(lines[1:]):
        where, same = f"{path}: line {number + 2}", number % (2 * each) < each
        pair = _lfw_pair(where, line)
        if pair.same != same:
            kinds = ("two people", "one person")
            raise UserError(
                f"{where}: {shown(line)} is a pair of {kinds[pair.same]}; by the head {shown(lines[0])} one of "
                f"{kinds[same]} should be here"
            )
        pairs.append(pair)
    if len(head) == 2:
        return pairs
    return [pair for both in zip(pairs[:each], pairs[each:], strict=True) for pair in both]


def read_lines(path: Path) -> list[Pair]:
    """The pairs in a list of LFW's lines without a head, in its order, as RFW has them.

    Raises:
        UserError: the list cannot be read, is empty, or a line has another form.
    """
    lines = _lines(path)
    return [_lfw_pair(f"{path}: line {number}", line) for number, line in enumerate(lines, 1)]


def _lines(path: Path) -> list[str]:
    text = read_text(path).rstrip()
    if (count := text.count("\n") + 1) > _MOST_PAIRS:  # before each is an object of its own
        raise UserError(f"{path}: {count:,} lines, expected at most {_MOST_PAIRS:,}; is it a list of pairs?")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if len(line) > _MOST_LINE:
            raise UserError(
                f"{path}: line {number} has {len(line):,} characters, expected at most {_MOST_LINE:,}; is it a list "
                "of pairs?"
            )
    return lines


def _lfw_pair(where: str, line: str) -> Pair:
    fields = line.split("\t")
    if len(fields) not in (3, 4) or not all(fields):
        raise UserError(
            f"{where}: {shown(line)} has {len(fields)} fields; expected `NAME I J` or `NAME1 I NAME2 J`, separated by "
            "tabs"
        )
    first, i, *other, j = fields
    second = other[0] if other else first
    for number in (i, j):
        if not _NUMBER.fullmatch(number):
            raise UserError(f"{where}: {shown(number)} is no number of a photo; expected 1, 2, ...")
    if other and first == second:
        raise UserError(f"{where}: {shown(line)} is a pair of two people, but names {shown(first)} twice")
    left, right = (f"{name}/{name}_{int(number):04d}" for name, number in ((first, i), (second, j)))
    if left == right:
        raise UserError(f"{where}: {shown(line)} is a pair of a photo with itself")
    return Pair(left, right, not other)


def _table(path: Path, columns: Columns) -> Iterator[Pair]:
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: columns {', '.join(columns)}: each has to be another")
    start = size = 0
    for batch in _parquet(path, columns) if path.suffix == ".parquet" else _csv(path, columns):
        if start + batch.num_rows > _MOST_PAIRS or (size := size + batch.nbytes) > _MOST_BYTES:
            raise UserError(
                f"{path}: more than {_MOST_PAIRS:,} rows, or than {_MOST_BYTES:,} bytes of text; is it a list of pairs?"
            )
        for number, values in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True), start + 1):
            yield _table_pair(f"{path}: row {number}", columns, *values)
        start += batch.num_rows


def _table_pair(where: str, columns: Columns, left: object, right: object, same: object) -> Pair:
    for name, value in zip(columns, (left, right), strict=False):
        if not isinstance(value, str) or not value:
            raise UserError(f"{where}: {name} is {shown(value)}, expected the path of a photo")
        if len(value) > _MOST_LINE:
            raise UserError(f"{where}: {name} has {len(value):,} characters, expected at most {_MOST_LINE:,}")
    flag = _FLAGS.get(str(same).strip().lower())
    if flag is None:
        raise UserError(f"{where}: {columns.same} is {shown(same)}, expected 0, 1, true or false")
    if left == right:
        raise UserError(f"{where}: {shown(left)} is paired with itself")
    return Pair(str(left), str(right), flag)


def _csv(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    separator = _SEPARATORS[path.suffix]
    data = read_bytes(path)
    try:
        with io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "replace") as file:  # Arrow would take the first of two
            _check_columns(path, next(reader([file.readline(_HEAD_BYTES)], delimiter=separator)), columns)
        with csv.open_csv(
            pa.BufferReader(data),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string())
            ),
        ) as batches:
            yield from batches
    except (OSError, CsvError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: {first_line(error)}") from error


def _parquet(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    from dist_train.runtime.parquet import bounded_batches

    try:
        metadata = parquet.read_metadata(path)
        _check_columns(path, metadata.schema.to_arrow_schema().names, columns)
        if metadata.num_rows > _MOST_PAIRS:  # before it is unpacked: a small file may hold any number of rows
            raise UserError(f"{path}: {metadata.num_rows:,} rows, expected at most {_MOST_PAIRS:,}")
        yield from bounded_batches(path, columns)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: {first_line(error)}") from error


def _check_columns(path: Path, names: list[str], columns: Columns) -> None:
    for name in columns:
        if (count := names.count(name)) != 1:
            found = f"{count} columns {name!r}" if count else f"no column {name!r}"
            told = ", ".join(repr(column) for column in columns)
            raise UserError(
                f"{path}: {found} among {', '.join(names)}; expected columns {told} (--left-column, --right-column, "
                "--same-column)"
            )
