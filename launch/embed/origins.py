"""Where pictures to be embedded come from: encoded pictures of a photo, a folder, a table, a `.rec` or tar shards.

Unlike preparation for training, this takes pictures of nobody known too: identity and label are given where known.
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
    """An encoded picture and what is known about it.

    Attributes:
        data: the encoded picture.
        identity: name of whom it shows.
        label: class number in its set.
        score: of the face detector that cut it out.
    """

    data: bytes
    identity: str | None = None
    label: int | None = None
    score: float | None = None


class Origin(ABC):
    """A source of encoded pictures."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What it is, as JSON values; `open_origin` takes `path` and `label_key` of it."""

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The list of its pictures."""

    @abstractmethod
    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Reject]]:
        """The pictures that were listed as `rows`.

        Raises:
            WorkError: the storage failed, rather than single pictures.
        """

    @abstractmethod
    def fetch(self, place: Place) -> bytes | Reject:
        """One picture again."""

    def close(self) -> None:  # noqa: B027 - not all hold anything open
        """Let go of open files."""


class OnePhoto(Source):
    """A single file."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The file."""
        yield listing([str(self.path.name).encode("utf-8", "surrogateescape")])

    def reader(self) -> Reader:
        """A reader of it."""
        return FileReader(self.path.parent)


class PhotoOrigin(Origin):
    """A photo, a folder (its first folders name identities), a table, or a `.rec`, by the sources of `data_prep`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = source.reader()
        self._records = isinstance(source, RecSource)

    def described(self) -> dict[str, Any]:
        """Kind and path."""
        return {"kind": type(self._source).__name__, "path": str(self._source.path)}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """As the source lists them."""
        return self._source.batches()

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Reject]]:
        """As the source reads them."""
        asked = [Row(0, r["location"], r["offset"], r["size"], r["identity"]) for r in rows.to_pylist()]
        places = [Place(self._source.text(row.location), row.offset, row.size) for row in asked]
        return list(zip(places, (self._found(each) for each in self._read(asked)), strict=True))

    def fetch(self, place: Place) -> bytes | Reject:
        """By its path; one whose name is not UTF-8 is not found again."""
        location = place.path.rpartition("#")[2] if self._records else place.path
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
