"""The source that is a folder of identities, and the reader of photos that are files."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from data_prep.sources.base import BATCH_ROWS, MAX_FILE_BYTES, Raw, Reader, Row, Source, display, listing
from dist_train.data.reject import Reject
from dist_train.errors import UserError

# Errors of a single input. Any other OSError (stale mount, lost server) fails the unit, which is tried again.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO, errno.EIO, errno.EINVAL}
)


class FolderSource(Source):
    """A source: the first folder below `path` names the identity, photos lie anywhere under it.

    A link to a folder inside `path` is not followed, since the photos are listed already; a link that leads outside is
    followed once. Links that are not followed, unreadable folders and other things that are no photos are listed, and
    rejected when they are read. Hidden files are ignored.
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
    """A reader of files whose location is a path; relative paths start from `root`."""

    nameless = "it lies in no identity's folder"

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Content of each file."""
        return [self._read(row) for row in rows]

    def root(self, row: Row) -> bytes:
        """The folder of the source."""
        return self._root

    def _read(self, row: Row) -> Raw | Reject:
        data = read_file(os.path.join(self._root, row.location))
        return data if isinstance(data, Reject) else Raw(data, row.identity)


def read_file(path: bytes) -> bytes | Reject:
    """The bytes of a file, or the reject of a file that cannot be read. Raises OSError where the storage has failed."""
    try:
        # Non-blocking, so that opening a pipe among the photos does not wait for a writer.
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
        except OSError:  # the link leads to itself
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
