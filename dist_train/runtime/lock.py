"""Locks: files that one process at a time holds, and that its death releases."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from dist_train.errors import UserError, WorkError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_MOST_CHARACTERS = 200  # of what a lock file says about its holder
_TRIES = 10  # to open a lock file whose directory others remove when they end


class HeldError(WorkError):
    """Another process holds a lock.

    Attributes:
        holder: `process NUMBER on HOST`; empty where the lock file does not say it.
        since: when it took the lock, local time.
    """

    def __init__(self, path: Path, waited_s: float, holder: str, since: str) -> None:
        super().__init__(f"waited {waited_s:g} s for {holder or 'another process'} to release {path}")
        self.holder, self.since = holder, since


class NoLocksError(OSError):
    """The file system has no locks, as some network file systems."""


class Lock:
    """A lock file that this process holds until it closes the lock or ends, however it ends.

    Args:
        path: of the file; its directory is made where it is not there, or goes with its last holder meanwhile.
        wait_s: longest wait for another holder; 0: try once.

    Raises:
        HeldError: another process held it all the time.
        NoLocksError: its file system has no locks.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        self._file = _take(path, wait_s)
        with suppress(OSError):  # on a full disk the holder's name is missing in messages, nothing more
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            self._file.flush()

    def close(self) -> None:
        """Release the lock, with an empty file; safe to repeat."""
        with suppress(OSError):  # what the disk refused above is refused again
            if not self._file.closed:
                self._file.truncate(0)
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now; False where nobody can tell, because there is no file or no locks.

    The file is left as it is. A process that tries to take the lock in this very moment finds it held.
    """
    try:
        # Non-blocking: a pipe in place of the file is not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def only_job(path: Path, out: Path) -> Iterator[None]:
    """Hold the lock file `path` as the only job that works on the output `out`.

    A file system without locks is worth a warning, and no more.

    Raises:
        UserError: another job holds it; the message names the job's host and process.
    """
    lock: Lock | None = None
    try:
        lock = Lock(path)
    except HeldError as error:
        who = f"{error.holder}, since {error.since}" if error.holder else "its holder is not known"
        raise UserError(
            f"{out}: another job is working on it ({who}); wait for it, stop it, or use another OUT"
        ) from error
    except NoLocksError as error:
        logger.warning("%s cannot be locked (%s): see to it that no other job works on it", path, error.strerror)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _take(path: Path, wait_s: float) -> IO[str]:
    """The open lock file, locked."""
    deadline = time.monotonic() + wait_s
    while True:
        file = _opened(path)
        try:
            while not _try(file):
                if time.monotonic() >= deadline:
                    raise _held(file, path, wait_s)
                time.sleep(_LOOK_EVERY_S)
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):
            return file
        file.close()  # its holder removed the file meanwhile


def _opened(path: Path) -> IO[str]:
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return path.open("a+", encoding="utf-8", errors="replace")
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+", encoding="utf-8", errors="replace")


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror) from error
    return True


def _held(file: IO[str], path: Path, waited_s: float) -> HeldError:
    file.seek(0)
    holder = file.read(_MOST_CHARACTERS).partition("\n")[0].strip()
    since = time.strftime("%F %T", time.localtime(os.fstat(file.fileno()).st_mtime))
    return HeldError(path, waited_s, holder if holder.isprintable() else "", since)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
