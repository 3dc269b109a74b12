"""Where photos come from: the listing of a source, and the reading of listed rows.

A source lists rows once, at planning; a unit of work reads its rows later, in another process, perhaps on another
machine. Whatever cannot be read is listed all the same and comes back as a `Reject` when read, so that every input is
accounted for. Archives (`.rec`, tar) are in `archives.py`, tables of paths and addresses in `tables.py`.
"""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from dist_train.data.tar_folder import is_tar, tars_in
from dist_train.errors import UserError

LISTING = pa.schema(
    [
        pa.field("location", pa.binary(), nullable=False),  # bytes: file names need not be UTF-8
        pa.field("offset", pa.int64(), nullable=False),  # inside an archive
        pa.field("size", pa.int64(), nullable=False),
        pa.field("identity", pa.string()),  # null: not known before reading, or none
    ]
)
BATCH_ROWS = 1 << 16
MAX_FILE_BYTES = 256 << 20  # no photo is larger; a disk image with a wrong name is

# One input's own trouble. Any other OSError (stale mount, lost server) is the unit's, which is tried again.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO, errno.EIO, errno.EINVAL}
)


class Row(NamedTuple):
    """One input as listed; `position` is its position in the source's list."""

    position: int
    location: bytes
    offset: int
    size: int
    identity: str | None


class Raw(NamedTuple):
    """One input as read: the encoded picture and whom it shows."""

    data: bytes
    identity: str


class Reject(NamedTuple):
    """Why an input is left out: a reason out of few, for counting, and the detail."""

    reason: str
    detail: str


# Reasons that say that the storage failed, not the input. A unit with nothing else in it has lost its storage.
STORAGE_REASONS = frozenset({"vanished", "unreadable", "unreachable"})


class Reader(ABC):
    """Reads rows of one source; lives in one worker."""

    @abstractmethod
    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """What each row holds, in order.

        Raises:
            OSError: the storage failed, rather than single inputs.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Let go of open files."""


class Source(BaseModel, ABC):
    """A source of photos; its fields are stored in the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class FolderSource(Source):
    """A folder of identities: the first folder below `path` names the identity, photos lie anywhere under it.

    A link to a folder inside `path` is not followed, since its photos are listed already; one that leads outside is
    followed once. Such links, unreadable folders and anything else that is no photo are listed, and rejected on
    reading. Hidden files are left alone.
    """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every file below `path`, folder by folder in the order of the names' bytes."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; expected one folder per identity in it")
        rows = ((location, _identity(location)) for location in _walk(os.fsencode(self.path)))
        while chunk := list(islice(rows, BATCH_ROWS)):
            yield listing([row[0] for row in chunk], identities=[row[1] for row in chunk])

    def reader(self) -> Reader:
        """A reader of files below `path`."""
        return FileReader(self.path)


class FileReader(Reader):
    """Reads files whose location is a path, relative ones from `root`."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Content of each file."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> Raw | Reject:
        data = read_file(os.path.join(self._root, row.location))
        if isinstance(data, Reject):
            return data
        return Raw(data, row.identity) if row.identity else Reject("no identity", "it lies in no identity's folder")


def read_file(path: bytes) -> bytes | Reject:
    """A file's bytes, or why that file cannot be had. Raises OSError where the storage has failed."""
    try:
        # Non-blocking, so that a pipe among the photos is refused and not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _content(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return Reject("vanished", "listed at planning, not there any more")
        if error.errno in _UNREADABLE:
            return Reject("unreadable", error.strerror or str(error))
        raise


def _content(fd: int) -> bytes | Reject:
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return Reject("not a file", "a folder that cannot be listed, or a link to a folder listed elsewhere")
    if not stat.S_ISREG(status.st_mode):
        return Reject("not a file", "a pipe, socket or device")
    if status.st_size > MAX_FILE_BYTES:
        return Reject("too large", f"{status.st_size} bytes, the most is {MAX_FILE_BYTES}")
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read()


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


def _column(values: Iterable | pa.Array, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _identity(location: bytes) -> str | None:
    first, slash, _ = location.partition(b"/")
    return display(first) if slash else None


def _walk(root: bytes) -> Iterator[bytes]:
    """Relative paths of everything below `root` that is not a folder to be walked, in order of their names."""
    real_root = os.path.realpath(root)
    inside = os.path.join(real_root, b"")
    followed: set[bytes] = set()

    def leads_on(entry: os.DirEntry[bytes]) -> bool:
        try:
            if not entry.is_dir():
                return False
        except OSError:  # a link to itself
            return False
        if not entry.is_symlink():
            return True
        target = os.path.realpath(entry.path)
        if (
            target == real_root
            or target.startswith(inside)
            or target in followed
            or real_root.startswith(target + b"/")
        ):
            return False
        followed.add(target)
        return True

    stack = [b""]  # a stack, since folders may be deeper than Python's recursion limit
    while stack:
        below = stack.pop()
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not below:
                raise
            yield below
            continue
        folders = []
        for entry in found:
            if entry.name.startswith(b"."):
                continue
            relative = os.path.join(below, entry.name)
            if leads_on(entry):
                folders.append(relative)
            else:
                yield relative
        stack.extend(reversed(folders))


def open_source(path: Path, path_column: str = "path", identity_column: str = "identity") -> Source:
    """The source at `path`, by what lies there: `.rec`, table, tar, folder of tars, folder of identities.

    Raises:
        UserError: nothing there, or nothing that is known.
    """
    from data_prep.archives import RecSource, TarSource
    from data_prep.tables import SUFFIXES, TableSource

    path = path.absolute()
    if path.is_dir():
        tars = tars_in(path)
        if (path / "train.rec").is_file():
            if tars:
                raise UserError(f"source {path}: holds both train.rec and {tars[0].name}: name one of them")
            return RecSource(path=path / "train.rec")
        return TarSource(path=path) if tars else FolderSource(path=path)
    if not path.exists():
        raise UserError(f"source {path}: not there")
    if path.suffix == ".rec":
        return RecSource(path=path)
    if is_tar(path):
        return TarSource(path=path)
    if path.suffix in SUFFIXES:
        return TableSource(path=path, path_column=path_column, identity_column=identity_column)
    raise UserError(
        f"source {path}: of no known kind; expected a folder of identities, a .rec, .tar, a folder of .tar, "
        "a .csv, .tsv or .parquet"
    )
