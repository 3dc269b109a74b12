"""The interface of sources of photos: the listing of a source, and the reading of listed rows.

A source lists rows once, at planning; a unit of work reads its rows later, in another process, perhaps on another
machine. Inputs that cannot be read are listed too and give a `Reject` when they are read, so that every input is
accounted for. Archives (`.rec`, tar) are in `archives.py`, tables of paths and addresses in `tables.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from dist_train.data.reject import Reject
from dist_train.section import Section

LISTING = pa.schema(
    [
        pa.field("location", pa.binary(), nullable=False),  # bytes, because file names need not be UTF-8
        pa.field("offset", pa.int64(), nullable=False),  # bytes from the start of an archive
        pa.field("size", pa.int64(), nullable=False),
        pa.field("identity", pa.string()),  # null: unknown before reading, or none
    ]
)
BATCH_ROWS = 1 << 16
NO_IDENTITY = "no identity"  # a reason of rejects
MAX_FILE_BYTES = 256 << 20  # larger than any photo, smaller than a disk image with a wrong name


class Row(NamedTuple):
    """An input as listed; `position` is its index in the source's list."""

    position: int
    location: bytes
    offset: int
    size: int
    identity: str | None


class Raw(NamedTuple):
    """An input as read: the encoded picture, and the identity that it shows; None where the identity is unknown."""

    data: bytes
    identity: str | None


class Reader(ABC):
    """A reader of rows of one source, in one worker.

    Attributes:
        nameless: reason of the reject of an input without an identity, for people.
        at_once: rows that are worth reading together; 1 where each is read by itself.
    """

    nameless: ClassVar[str]
    at_once: ClassVar[int] = 1

    @abstractmethod
    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """The input or the reject of each row, in order.

        Raises:
            OSError: the storage failed, not a single input.
        """

    def read_named(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """As `read`, for work that needs identities: pictures without one are rejected."""
        return [
            Reject(NO_IDENTITY, self.nameless) if isinstance(raw, Raw) and raw.identity is None else raw
            for raw in self.read(rows)
        ]

    def root(self, row: Row) -> bytes | None:
        """The folder below which a row was listed; None where it was in none that this reader reads files of."""
        return None

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Close all files."""


class Source(Section, ABC):
    """A source of photos; its fields are stored in the plan."""

    path: Path

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The list of inputs, as batches of schema `LISTING`, always in the same order.

        Raises:
            UserError: the source has another format than its name says.
        """

    @abstractmethod
    def reader(self) -> Reader:
        """A reader of listed rows."""

    def text(self, location: bytes) -> str:
        """A location as text, for `rejects.parquet` and the `source` in the samples' .json."""
        return display(location)


def listing(
    locations: Sequence[bytes] | pa.Array,
    offsets: Sequence[int] | pa.Array | None = None,
    sizes: Sequence[int] | pa.Array | None = None,
    identities: Iterable[str | None] | pa.Array | None = None,
) -> pa.RecordBatch:
    """A batch of schema `LISTING`; missing columns are 0, missing identities null."""
    zeros = pa.repeat(pa.scalar(0, pa.int64()), len(locations))
    columns = [
        _column(locations, pa.binary()),
        zeros if offsets is None else _column(offsets, pa.int64()),
        zeros if sizes is None else _column(sizes, pa.int64()),
        pa.nulls(len(locations), pa.string()) if identities is None else _column(identities, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING)


def display(name: bytes) -> str:
    r"""File name bytes as text; bytes that are not UTF-8 become \\xNN."""
    return name.decode("utf-8", "backslashreplace")


def _column(values: Iterable[Any] | pa.Array, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
