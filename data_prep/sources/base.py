"""Where photos come from: the listing of a source, and the reading of listed rows.

A source lists rows once, at planning; a unit of work reads its rows later, in another process, perhaps on another
machine. Whatever cannot be read is listed all the same and comes back as a `Reject` when read, so that every input is
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
        pa.field("location", pa.binary(), nullable=False),  # bytes: file names need not be UTF-8
        pa.field("offset", pa.int64(), nullable=False),  # inside an archive
        pa.field("size", pa.int64(), nullable=False),
        pa.field("identity", pa.string()),  # null: not known before reading, or none
    ]
)
BATCH_ROWS = 1 << 16
NO_IDENTITY = "no identity"  # a reason of rejects
MAX_FILE_BYTES = 256 << 20  # no photo is larger; a disk image with a wrong name is


class Row(NamedTuple):
    """One input as listed; `position` is its position in the source's list."""

    position: int
    location: bytes
    offset: int
    size: int
    identity: str | None


class Raw(NamedTuple):
    """One input as read: the encoded picture, and whom it shows; None where that is not known."""

    data: bytes
    identity: str | None


class Reader(ABC):
    """Reads rows of one source; lives in one worker.

    Attributes:
        nameless: what is wrong with an input of nobody known, for people.
    """

    nameless: ClassVar[str]

    @abstractmethod
    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """What each row holds, in order.

        Raises:
            OSError: the storage failed, rather than single inputs.
        """

    def read_named(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """As `read`, for work that needs to know whom each picture shows: pictures of nobody known are rejected."""
        return [
            Reject(NO_IDENTITY, self.nameless) if isinstance(raw, Raw) and raw.identity is None else raw
            for raw in self.read(rows)
        ]

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Let go of open files."""


class Source(Section, ABC):
    """A source of photos; its fields are stored in the plan."""

    path: Path

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The list of inputs, as batches of schema `LISTING`, always in the same order.

        Raises:
            UserError: the source is not what it was taken for.
        """

    @abstractmethod
    def reader(self) -> Reader:
        """A reader of listed rows."""

    def text(self, location: bytes) -> str:
        """A location as `rejects.parquet` and the samples' .json name it."""
        return display(location)


def listing(
    locations: Sequence[bytes] | pa.Array,
    offsets: Sequence[int] | pa.Array | None = None,
    sizes: Sequence[int] | pa.Array | None = None,
    identities: Iterable[str | None] | pa.Array | None = None,
) -> pa.RecordBatch:
    """A batch of schema `LISTING`; what is not given is 0, or null for identities."""
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
