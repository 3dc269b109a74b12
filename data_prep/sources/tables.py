"""The source that is a table: CSV, TSV or parquet with a path or address and an identity per row."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.base import MAX_FILE_BYTES, NO_IDENTITY, Raw, Reader, Row, Source, display, listing
from data_prep.sources.folder import read_file
from dist_train.data.addresses import SCHEMES, TooLargeError, read_address
from dist_train.data.reject import Reject
from dist_train.errors import UserError
from dist_train.runtime.daemons import Daemons
from dist_train.runtime.text import first_line

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = frozenset({*_SEPARATORS, ".parquet"})
_BAD_ROW = b"\0"  # first byte of the location of a line that is no row; no path and no address begins with it
_PAUSES_S = (1.0, 3.0)  # pauses before the second and third try of an address
_FETCHES_AT_ONCE = 16
_FETCH_TIMEOUT_S = 30.0
_ROW_BYTES = 4 << 10  # of a column of parquet; addresses that are signed have some 2 KiB


class TableSource(Source):
    """The source of the rows of `path`; relative photo paths start from the table's folder, addresses contain `://`.

    A line with too few or too many columns is listed after all rows, and rejected when it is read.

    Attributes:
        path_column: column of paths or addresses.
        identity_column: column of identities, text or whole numbers.
    """

    path_column: str = "path"
    identity_column: str = "identity"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows of the table, in its order."""
        for batch in self._parquet() if self.path.suffix == ".parquet" else self._csv():
            locations, identities = batch.column(0), batch.column(1)
            yield listing(pc.fill_null(pc.cast(locations, pa.binary()), b""), identities=_names(identities))

    def text(self, location: bytes) -> str:
        """The path or address, or a description of what is wrong with a line."""
        return display(location.removeprefix(_BAD_ROW))

    def _csv(self) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv

        wanted = [self.path_column, self.identity_column]
        bad: list[bytes] = []

        def note(row: Any) -> str:  # noqa: ANN401 - pyarrow has no types
            found = f"line {row.number}: {row.actual_columns} columns, expected {row.expected_columns}"
            bad.append(_BAD_ROW + f"{found}: {row.text[:200]}".encode("utf-8", "backslashreplace"))
            return "skip"

        try:
            with csv.open_csv(
                self.path,
                read_options=csv.ReadOptions(block_size=4 << 20, use_threads=False),
                parse_options=csv.ParseOptions(
                    delimiter=_SEPARATORS[self.path.suffix], newlines_in_values=True, invalid_row_handler=note
                ),
                convert_options=csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.binary()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            ) as reader:
                yield from reader
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise UserError(f"{self.path}: {self._missing(error)}") from error
        if bad:
            yield pa.RecordBatch.from_arrays([pa.array(bad, pa.binary()), pa.nulls(len(bad), pa.string())], wanted)

    def _parquet(self) -> Iterator[pa.RecordBatch]:
        from pyarrow import parquet

        from dist_train.runtime.parquet import bounded_batches

        try:
            self._check_columns({field.name: field.type for field in parquet.read_schema(self.path)})
            yield from bounded_batches(
                self.path, [self.path_column, self.identity_column], row_bytes=_ROW_BYTES, text_as_bytes=True
            )
        except UserError:
            raise
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.path}: {first_line(error)}") from error

    def _missing(self, error: Exception) -> str:
        wanted = f"expected columns {self.path_column!r} and {self.identity_column!r}"
        return f"{first_line(error)}; {wanted} (--path-column, --identity-column)"

    def _check_columns(self, kinds: dict[str, pa.DataType]) -> None:
        for column, whole_numbers in ((self.path_column, False), (self.identity_column, True)):
            kind = kinds.get(column)
            if kind is None:
                raise UserError(
                    f"{self.path}: no column {column!r} among {', '.join(kinds)}; "
                    "name it with --path-column or --identity-column"
                )
            if not (_is_text(kind) or (whole_numbers and pa.types.is_integer(kind))):
                raise UserError(f"{self.path}: column {column!r} holds {kind}, expected text")

    def reader(self) -> Reader:
        """A reader of files and addresses."""
        return TableReader(self.path.parent)


class TableReader(Reader):
    """A reader of paths from disk and of addresses by fsspec; the addresses of a batch are fetched at the same time."""

    nameless = "its identity is empty"
    at_once = 2 * _FETCHES_AT_ONCE

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Content of each row's file or address."""
        fetched = self._fetch(list(dict.fromkeys(row.location for row in rows if _is_address(row.location))))
        return [_wrong_with(row) or self._one(row, fetched) for row in rows]

    def read_named(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """See `Reader`; rows without an identity are not fetched."""
        named = iter(self.read([row for row in rows if row.identity]))
        return [next(named) if row.identity else _wrong_with(row) or Reject(NO_IDENTITY, self.nameless) for row in rows]

    def root(self, row: Row) -> bytes | None:
        """The table's folder, for paths that start there."""
        return None if _is_address(row.location) or os.path.isabs(row.location) else self._root

    def _one(self, row: Row, fetched: dict[bytes, bytes | Reject]) -> Raw | Reject:
        address = _is_address(row.location)
        data = fetched[row.location] if address else read_file(os.path.join(self._root, row.location))
        return data if isinstance(data, Reject) else Raw(data, row.identity or None)

    def _fetch(self, addresses: list[bytes]) -> dict[bytes, bytes | Reject]:
        if not addresses:
            return {}
        # Waiting for a server takes no core: many requests at a time, whatever the number of workers.
        threads = Daemons(min(_FETCHES_AT_ONCE, len(addresses)), "fetch")
        fetched = [threads.submit(partial(self._get, address)) for address in addresses]
        try:
            return {address: each.result() for address, each in zip(addresses, fetched, strict=True)}
        finally:
            for each in fetched:  # after an interrupt, which waits for none that has begun
                each.cancel()
            threads.close(0.0)

    def _get(self, location: bytes) -> bytes | Reject:
        address = display(location)
        scheme = address.partition("://")[0]
        if scheme not in SCHEMES:
            return Reject("no such protocol", f"{scheme[:40]}: expected a path, or one of {', '.join(SCHEMES)}")
        for pause_s in (*_PAUSES_S, None):
            try:
                return read_address(address, MAX_FILE_BYTES, _FETCH_TIMEOUT_S)
            except Exception as error:  # each protocol has its own kinds
                settled = _settled(error)
                if settled or pause_s is None:
                    return settled or Reject("unreachable", type(error).__name__)
            time.sleep(pause_s)
        raise AssertionError("the last pause is None")


def _wrong_with(row: Row) -> Reject | None:
    """The reject of a row that names no photo; None for other rows."""
    if not row.location:
        return Reject("no path", "its path is empty")
    if row.location.startswith(_BAD_ROW):
        return Reject("bad row", "its line of the table has not as many columns as the first")
    if b"\0" in row.location:
        return Reject("bad path", "there is a NUL in it")
    return None


def _settled(error: Exception) -> Reject | None:
    """The reject that follows from an error; None if another try may succeed."""
    if isinstance(error, FileNotFoundError):
        return Reject("vanished", "no such address")
    if isinstance(error, TooLargeError):
        return Reject("too large", str(error))
    if isinstance(error, UserError):
        return Reject("no such protocol", str(error))
    if isinstance(error, ValueError):
        return Reject("bad address", first_line(error))
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or (isinstance(status, int) and 400 <= status < 500 and status != 429):
        return Reject("unreadable", f"status {status}" if status else "permission denied")
    return None


def _is_address(location: bytes) -> bool:
    return b"://" in location and b"\0" not in location


def _names(identities: pa.Array) -> pa.Array:
    """Identities as text; bytes that are not UTF-8 are escaped as in file names."""
    if pa.types.is_integer(identities.type):
        return pc.cast(identities, pa.string())
    raw = pc.cast(identities, pa.binary())
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        return pa.array([None if name is None else display(name) for name in raw.to_pylist()], pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
