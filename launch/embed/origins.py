"""Origins of pictures to be embedded: a photo, a folder, a table, a `.rec` or tar shards.

Unlike preparation for training, origins give pictures of unknown people too; identity and label are None for them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from data_prep.sources.archives import RecSource
from data_prep.sources.base import Raw, Reader, Row, Source, listing
from data_prep.sources.folder import FileReader
from dist_train.data.reject import Reject
from dist_train.embed.pictures import Place
from dist_train.errors import WorkError


class Found(NamedTuple):
    """An encoded picture and its facts.

    Attributes:
        data: the encoded picture.
        identity: name of the person; None: unknown.
        label: class number in its set; None: unknown.
        score: score of the face detector that cut it out; None: unknown.
    """

    data: bytes
    identity: str | None = None
    label: int | None = None
    score: float | None = None


class Origin(ABC):
    """A source of encoded pictures."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Description as JSON values; `open_origin` takes its `path` and `label_key`."""

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing of its pictures, batch by batch."""

    @abstractmethod
    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Reject]]:
        """The pictures or rejects of listed `rows`.

        Raises:
            WorkError: the storage failed, not a single picture.
        """

    @abstractmethod
    def fetch(self, place: Place) -> bytes | Reject:
        """One picture again."""

    def close(self) -> None:  # noqa: B027 - not all hold anything open
        """Close all files."""


class OnePhoto(Source):
    """The source that is a single file."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing, with the file as its one row."""
        yield listing([str(self.path.name).encode("utf-8", "surrogateescape")])

    def reader(self) -> Reader:
        """A reader of the file."""
        return FileReader(self.path.parent)


class PhotoOrigin(Origin):
    """The origin that is a photo, a folder (its first folders name identities), a table or a `.rec`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = source.reader()
        self._records = isinstance(source, RecSource)

    def described(self) -> dict[str, Any]:
        """Description: kind and path."""
        return {"kind": type(self._source).__name__, "path": str(self._source.path)}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing of the source."""
        return self._source.batches()

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Reject]]:
        """The pictures or rejects of listed `rows`."""
        asked = [Row(0, r["location"], r["offset"], r["size"], r["identity"]) for r in rows.to_pylist()]
        places = [Place(self._source.text(row.location), row.offset, row.size) for row in asked]
        return list(zip(places, (self._found(each) for each in self._read(asked)), strict=True))

    def fetch(self, place: Place) -> bytes | Reject:
        """The picture by its path; a file whose name is not UTF-8 is not found again."""
        location = place.path
        if self._records:
            file, _, location = place.path.rpartition("#")
            if file != self._source.path.name or not (location.isascii() and location.isdigit()):
                return Reject("vanished", f"{place.path} is no record, and {self._source.path} lies there now")
        (found,) = self._read([Row(0, location.encode(), place.offset, place.size, None)])
        return found.data if isinstance(found, Raw) else found

    def close(self) -> None:
        """Close the source's files."""
        self._reader.close()

    def _read(self, rows: list[Row]) -> list[Raw | Reject]:
        try:
            return self._reader.read(rows)
        except OSError as error:
            raise WorkError(f"{self._source.path}: the storage fails: {error}; the same command goes on") from error

    def _found(self, raw: Raw | Reject) -> Found | Reject:
        if isinstance(raw, Reject):
            return raw
        label = int(raw.identity) if self._records and raw.identity is not None else None
        return Found(raw.data, raw.identity, label)
