"""Enrolled people: embeddings that are added to a gallery and taken out again, on the disk before they count.

GALLERY/enrolled.log    a line a record: CRC-32 of the rest, 8 hexadecimal digits; a space; JSON
GALLERY/enrolled.lock   held by the one process that writes

The first record says what made the embeddings; the others add one, or forget some. What a killed process left half
written is its last line, which nobody was told of: it is cut off. Records that were forgotten leave the disk when the
log is opened for writing, and while it is in use as soon as they are as many as the others.
"""

import base64
import json
import os
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dist_train.errors import UserError, WorkError
from dist_train.runtime.files import first_fault
from dist_train.runtime.lock import HeldError, Lock
from dist_train.runtime.written import remove_temporaries, sync_directory, written
from dist_train.section import first_difference

LOG, LOCK = "enrolled.log", "enrolled.lock"
FORMAT_VERSION = 1
MOST_IDENTITY = 200  # characters of a name
MOST_PICTURE = 1 << 17  # bytes of a picture
MOST_ENTRIES = 100_000
_MOST_RECORD = 1 << 20  # bytes of a line: the longest embedding and the largest picture
_MOST_BYTES = 32 << 30  # of a log: that of the most entries with the largest pictures, twice
_MOST_DIM = 1 << 16
_MOST_FORGOTTEN = 10_000  # in a record

_Number = Annotated[int, Field(ge=1, le=1 << 53)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Head(_Record):
    version: int
    made_by: dict[str, Any]
    next: _Number


class _Added(_Record):
    add: _Number
    identity: Annotated[str, Field(min_length=1, max_length=MOST_IDENTITY)]
    time: Annotated[float, Field(ge=0, le=1e12)]
    embedding: str
    picture: str | None = None


class _Forgotten(_Record):
    forget: Annotated[tuple[_Number, ...], Field(min_length=1, max_length=_MOST_FORGOTTEN)]


class Entry(NamedTuple):
    """Somebody enrolled.

    Attributes:
        number: by which this entry can be forgotten; never given twice.
        identity: the name.
        since: when, seconds since 1970.
        place: offset and length of the record in the log.
    """

    number: int
    identity: str
    since: float
    place: tuple[int, int]


class Enrolled:
    """The enrolled people of a gallery, for one process that writes, and any threads in it.

    Args:
        directory: of the gallery; made where it is missing and `writable`.
        made_by: what decides the embeddings, as JSON values, with `embedding_dim`.
        writable: hold the lock, cut a torn end off and take additions; otherwise the log is read, once.
        most: entries.

    Raises:
        UserError: the log is of another model, damaged, too large, or in use by another process.
        OSError: the disk refuses.
    """

    def __init__(
        self, directory: Path, made_by: dict[str, Any], writable: bool = True, most: int = MOST_ENTRIES
    ) -> None:
        self.path, self.writable, self.most = directory / LOG, writable, most
        self._made_by, self._dim = made_by, int(made_by["embedding_dim"])
        if not 1 <= self._dim <= _MOST_DIM:
            raise UserError(f"embeddings of {self._dim} numbers; 1 to {_MOST_DIM} can be enrolled")
        self._mutex = threading.Lock()
        self._rows = np.empty((0, self._dim), np.float32)
        self._entries: list[Entry] = []
        self._next, self._dead, self._end, self._broken = 1, 0, 0, ""
        self._lock: Lock | None = None
        self._file = -1
        if writable:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = Lock(directory / LOCK)
            except HeldError as error:
                raise UserError(
                    f"gallery {directory}: {error.holder or 'another process'} enrols there; one process at a time can"
                ) from error
            remove_temporaries(directory, f"{LOG}.*")
        try:
            self._open(writable)
        except BaseException:
            self.close()
            raise

    def _open(self, writable: bool) -> None:
        if not self.path.exists():
            if not writable:
                return
            with written(self.path) as file:
                file.write(self._head())
            sync_directory(self.path.parent)
        flags = (os.O_RDWR | os.O_APPEND) if writable else os.O_RDONLY
        self._file = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise UserError(f"{self.path}: expected a file of at most {_MOST_BYTES >> 30} GiB; remove it")
        torn = self._replay()
        if writable and (torn or self._dead):
            self._compact()

    def __len__(self) -> int:
        return len(self._entries)

    def snapshot(self) -> tuple[torch.Tensor, list[Entry]]:
        """Unit embeddings float32 [N, D] and their entries, as they are now; later changes do not touch them."""
        with self._mutex:
            return torch.from_numpy(self._rows[: len(self._entries)]), self._entries[:]

    def add(self, identity: str, embedding: NDArray[np.float32], picture: bytes | None = None) -> Entry:
        """Enrol somebody; once this returns, no crash takes it back.

        Args:
            identity: the name, printable, at most `MOST_IDENTITY` characters.
            embedding: float32 [D], of any length.
            picture: to show, JPEG; None keeps none.

        Raises:
            UserError: a bad name, embedding or picture, or there is no room for more entries.
            WorkError: the disk refuses.
        """
        check_identity(identity)
        length = float(np.linalg.norm(embedding.astype(np.float64)))
        if embedding.shape != (self._dim,) or not (np.isfinite(length) and length > 0):
            raise UserError(f"embedding {list(embedding.shape)}: expected {self._dim} finite numbers, not all zero")
        if picture is not None and len(picture) > MOST_PICTURE:
            raise UserError(f"picture of {len(picture):,} bytes: at most {MOST_PICTURE:,} are kept")
        unit = (embedding / length).astype("<f4")
        with self._mutex:
            if len(self._entries) >= self.most:
                raise UserError(
                    f"gallery {self.path.parent}: {self.most:,} are enrolled, which is the most; forget some"
                )
            body: dict[str, Any] = {
                "add": self._next,
                "identity": identity,
                "time": round(time.time(), 3),
                "embedding": base64.b64encode(unit.tobytes()).decode(),
            }
            if picture is not None:
                body["picture"] = base64.b64encode(picture).decode()
            entry = Entry(self._next, identity, body["time"], self._append(body))
            self._take(entry, unit)
            return entry

    def forget(self, identity: str | None = None, number: int | None = None) -> int:
        """Forget one entry, or all of one name; how many were found. Once this returns, no crash brings them back.

        Raises:
            WorkError: the disk refuses.
        """
        with self._mutex:
            gone = [
                e.number for e in self._entries if e.number == number or (number is None and e.identity == identity)
            ]
            for start in range(0, len(gone), _MOST_FORGOTTEN):
                part = gone[start : start + _MOST_FORGOTTEN]
                self._append({"forget": part})
                self._drop(set(part))
            if gone and self._dead > len(self._entries):
                self._compact()
            return len(gone)

    def picture(self, entry: Entry) -> bytes | None:
        """The picture that was kept of an entry; None where none was, or it was forgotten meanwhile."""
        with self._mutex:  # the log is not rewritten meanwhile
            now = next((each for each in self._entries if each.number == entry.number), None)
            record = _parsed(os.pread(self._file, now.place[1], now.place[0])) if now else None
        if not isinstance(record, _Added) or record.picture is None:
            return None
        return base64.b64decode(record.picture)

    def close(self) -> None:
        """Close the log, and release it; safe to repeat."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock is not None:
            self._lock.close()

    def _head(self) -> bytes:
        return _line({"version": FORMAT_VERSION, "made_by": self._made_by, "next": self._next})

    def _append(self, body: dict[str, Any]) -> tuple[int, int]:
        """Write a record, and wait for the disk; its offset and length."""
        if self._lock is None:
            raise UserError(f"gallery {self.path.parent} was opened for reading")
        if self._broken:
            raise WorkError(f"{self.path}: writing failed before ({self._broken}); start again when the disk is well")
        line = _line(body)
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            self._cut_back(error)
            raise WorkError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        place = self._end, len(line)
        self._end += len(line)
        return place

    def _cut_back(self, error: OSError) -> None:
        """Take back what was written of a record. Where that fails too, no more is taken."""
        try:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
        except OSError:
            self._broken = error.strerror or str(error)

    def _replay(self) -> bool:
        """Take all records in; whether a torn end follows them.

        Raises:
            UserError: anything else is wrong with the log.
        """
        torn = None
        with open(os.dup(self._file), "rb", closefd=True) as file:
            for offset, line in _lines(file):
                record = _parsed(line)
                if record is None:
                    torn = offset if torn is None else torn
                elif torn is not None:
                    raise UserError(f"{self.path}: damaged at byte {torn}; bring it back from a copy, or remove it")
                else:
                    self._apply(record, offset, len(line))
        if self._end == 0:
            raise UserError(f"{self.path}: not a log of enrolled people; remove it")
        return torn is not None

    def _apply(self, record: "_Head | _Added | _Forgotten", offset: int, length: int) -> None:
        if isinstance(record, _Head) != (offset == 0):
            raise UserError(f"{self.path}: record at byte {offset} is of the wrong kind; remove the log")
        self._end = offset + length
        if isinstance(record, _Head):
            if record.version != FORMAT_VERSION:
                raise UserError(f"{self.path}: version {record.version}, expected {FORMAT_VERSION}")
            if found := first_difference(_what_counts(record.made_by), _what_counts(self._made_by), cut_digests=True):
                raise UserError(
                    f"{self.path}: the people there were not enrolled in the same way: {found}; serve as they were "
                    "enrolled, or remove the log and enrol them again"
                )
            self._next = record.next
        elif isinstance(record, _Forgotten):
            self._drop(set(record.forget))
        else:
            unit = _embedding(record.embedding, self._dim)
            if unit is None or (self._entries and record.add <= self._entries[-1].number):
                raise UserError(f"{self.path}: record at byte {offset} is damaged; remove the log and enrol again")
            if len(self._entries) >= self.most:
                raise UserError(f"{self.path}: more than {self.most:,} entries, which is the most")
            self._take(Entry(record.add, record.identity, record.time, (offset, length)), unit)

    def _take(self, entry: Entry, unit: NDArray[np.float32]) -> None:
        count = len(self._entries)
        if count == len(self._rows):
            grown = np.empty((max(16, 2 * count), self._dim), np.float32)
            grown[:count] = self._rows
            self._rows = grown
        self._rows[count] = unit
        self._entries.append(entry)
        self._next = max(self._next, entry.number + 1)

    def _drop(self, gone: set[int]) -> None:
        kept = [row for row, entry in enumerate(self._entries) if entry.number not in gone]
        self._dead += len(self._entries) - len(kept)
        self._rows = self._rows[kept]  # a copy: snapshots keep theirs
        self._entries = [self._entries[row] for row in kept]

    def _compact(self) -> None:
        """Write the log without what was forgotten. It replaces the old one at once or not at all."""
        entries = []
        with written(self.path) as file:
            end = file.write(self._head())
            for entry in self._entries:
                line = os.pread(self._file, entry.place[1], entry.place[0])
                entries.append(entry._replace(place=(end, len(line))))
                end += file.write(line)
        sync_directory(self.path.parent)
        new = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.close(self._file)
        self._file, self._entries, self._end, self._dead = new, entries, end, 0


def check_identity(identity: str) -> None:
    """Refuse what cannot be a name.

    Raises:
        UserError: empty, too long, or with characters that are not printed.
    """
    if not identity.strip() or len(identity) > MOST_IDENTITY or not identity.isprintable():
        raise UserError(f"identity: expected 1 to {MOST_IDENTITY} printable characters, got {len(identity)}")


def _what_counts(made_by: dict[str, Any]) -> dict[str, Any]:
    """`made_by` without names, which may change."""
    model = made_by.get("model")
    return made_by | ({"model": {k: v for k, v in model.items() if k != "name"}} if isinstance(model, dict) else {})


def _line(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:  # noqa: ANN401 - a binary file
    """Offsets and lines; the rest of one that is too long is a line of its own, and no record."""
    offset = 0
    while line := file.readline(_MOST_RECORD):
        yield offset, line
        offset += len(line)


def _parsed(line: bytes) -> _Head | _Added | _Forgotten | None:
    """The record of a line; None where it is not whole."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(text):
        return None
    for kind in (_Added, _Forgotten, _Head):
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            fault = error
    raise UserError(f"{LOG}: a record is not ours: {first_fault(fault)}; remove the log")


def _embedding(text: str, dim: int) -> NDArray[np.float32] | None:
    """The unit embedding [D] of a record; None where it is none."""
    try:
        found = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError:
        return None
    length = float(np.linalg.norm(found.astype(np.float64)))
    return found.astype(np.float32) if len(found) == dim and abs(length - 1) < 1e-3 else None
