"""Shards behind an address: downloaded whole into a bounded cache that the processes of a machine share."""

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

from dist_train.data.addresses import TooLargeError, download, read_address
from dist_train.data.config import DataConfig
from dist_train.data.foreign import write_index
from dist_train.data.manifest import MANIFEST_NAME, Shard
from dist_train.data.shards import BadSampleError
from dist_train.errors import UserError, WorkError
from dist_train.runtime.daemons import Daemons
from dist_train.runtime.files import plain_name
from dist_train.runtime.lock import HeldError, Lock

_T = TypeVar("_T")

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SMALL_FILE_S = 600.0  # for a file of any size
_SLOWEST_BYTES_S = 64 << 10  # slower downloads are given up: a server that drips must not hold a job for ever
_FOLDER = re.compile("[0-9a-f]{16}")  # of a set in the cache
_DOWNLOADS = 4  # at a time, ahead of need
_GRACE_S = 2.0  # for downloads to be broken off; a server that is silent may keep one longer


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path


def default_cache_dir() -> Path:
    """The user's cache directory, by the XDG rule."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headcount"


class CachePolicy(NamedTuple):
    """How shards behind addresses are kept.

    Attributes:
        directory: where.
        limit_bytes: most bytes of all of them.
        retries: further tries after a failure.
        timeout_s: longest wait for another process that downloads the same shard.
    """

    directory: Path
    limit_bytes: int
    retries: int
    timeout_s: float


def cache_policy(config: DataConfig) -> CachePolicy:
    """What the `data` section says about the cache."""
    directory = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    return CachePolicy(directory, int(config.cache_gb * 1e9), config.retries, config.timeout_s)


class Remote:
    """Files behind an address, with further tries."""

    def __init__(self, url: str, retries: int) -> None:
        self.url = url.rstrip("/")
        self._retries = retries
        self._stop = Event()

    def read(self, name: str, limit: int) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: it is not there.
            UserError: it has more than `limit` bytes, or the kind of address is not followed.
            WorkError: the server cannot be reached.
        """
        url = f"{self.url}/{name}"
        try:
            return self._insist(name, lambda: read_address(url, limit, _SMALL_FILE_S))
        except TooLargeError as error:
            raise UserError(f"{url}: {error}, expected at most that; is it such a file?") from error

    def download(self, name: str, target: Path, size: int, accept: Callable[[Path], str | None]) -> str | None:
        """Copy a file to `target`, until `accept` has nothing against it; what it has after the last try.

        Raises:
            FileNotFoundError: it is not there.
            UserError: the kind of address is not followed.
            WorkError: the server cannot be reached.
        """

        def attempt() -> None:
            try:
                timeout_s = _SMALL_FILE_S + size / _SLOWEST_BYTES_S
                download(f"{self.url}/{name}", target, size, timeout_s, self._stop)
            except TooLargeError as error:
                raise _UnacceptableError(f"{error}, expected no more") from error
            complaint = accept(target)
            if complaint is not None:
                raise _UnacceptableError(complaint)

        try:
            self._insist(name, attempt)
        except _UnacceptableError as error:
            return str(error)
        return None

    def stop(self) -> None:
        """Break off what other threads wait for, and begin nothing more."""
        self._stop.set()

    def _insist(self, name: str, attempt: Callable[[], _T]) -> _T:
        begin = time.monotonic()
        last: Exception | None = None
        for number in range(self._retries + 1):
            if self._stop.is_set():
                raise WorkError(f"{self.url}/{name}: broken off, as nobody waits for it any more")
            try:
                return attempt()
            except (FileNotFoundError, TooLargeError, UserError):
                raise
            # Each file system of fsspec raises its own library's exceptions; none of them is known not to pass.
            except Exception as error:
                last = error
                if not self._stop.is_set():
                    log.info("%s/%s, try %d: %s", self.url, name, number + 1, error or type(error).__name__)
                if number < self._retries:
                    self._stop.wait(min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S))
        if isinstance(last, _UnacceptableError):
            raise last
        raise WorkError(
            f"{self.url}/{name}: no success in {self._retries + 1} tries over {time.monotonic() - begin:.0f} s, at "
            f"last {type(last).__name__}: {last}; see to the server or the network, then resume the run"
        ) from last


class _UnacceptableError(Exception):
    """A file came whole, but is not the one that was expected."""


class ShardCache:
    """Local copies of one set's shards, checked against its manifest and named by their content.

    All sets share the directory and its limit; what was used longest ago is deleted first.
    """

    def __init__(self, url: str, policy: CachePolicy) -> None:
        self._remote = Remote(url, policy.retries)
        self._root = policy.directory
        self._directory = policy.directory / hashlib.sha256(self._remote.url.encode()).hexdigest()[:16]
        self._limit = policy.limit_bytes
        self._timeout_s = policy.timeout_s

    def fetch(self, shard: Shard) -> Path:
        """Path of a local copy, downloaded if need be; other processes that want it wait.

        Raises:
            BadSampleError: the shard is gone, is not what the manifest says, or is no tar.
            WorkError: the server cannot be reached, or the disk is full.
        """
        plain_name(shard.name, f"{self._remote.url}/{MANIFEST_NAME}")  # which becomes part of an address
        # Not by its name: a set that is written anew under its address may have shards of the same names and sizes.
        path = self._directory / f"{shard.sha256[:16]}.tar"
        if self._is_there(path, shard):
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Lock(path.with_name(f".{path.name}.lock"), self._timeout_s):
                if not self._is_there(path, shard):
                    self._download(shard, path)
        except FileNotFoundError as error:
            raise BadSampleError(f"{self._remote.url}/{shard.name}: not there") from error
        except OSError as error:
            raise WorkError(
                f"data.cache_dir {self._root}: {error.strerror or error}; free space or name another"
            ) from error
        return path

    def stop(self) -> None:
        """Break off what other threads download, and begin nothing more."""
        self._remote.stop()

    def _is_there(self, path: Path, shard: Shard) -> bool:
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != shard.bytes:
                return False  # a link, or damaged since
            os.utime(path)  # the time of last use
        except FileNotFoundError:
            return False
        return True

    def _download(self, shard: Shard, path: Path) -> None:
        part = path.with_name(f".{path.name}.part")
        with Lock(self._root / ".room.lock", self._timeout_s):
            self._make_room(shard.bytes)
        try:
            complaint = self._remote.download(shard.name, part, shard.bytes, shard.mismatch)
            if complaint is not None:
                raise BadSampleError(f"{self._remote.url}/{shard.name}: {complaint}")
            # The index is made of the tar that came, so that it cannot be one of another version.
            write_index(part, path.with_suffix(".idx"))
            with Lock(self._root / ".room.lock", self._timeout_s):
                self._make_room(shard.bytes)  # once more: others may have filled it meanwhile
                part.replace(path)
        except UserError as error:
            raise BadSampleError(f"{self._remote.url}/{shard.name}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, coming: int) -> None:
        """Delete until `coming` bytes more stay within the limit; the caller holds the room's lock.

        So are leftovers of downloads whose process was killed; one that is under way holds the lock of its shard.
        """
        held = []
        if coming > self._limit:
            raise WorkError(
                f"data.cache_gb={self._limit / 1e9:g}: a shard of {self._remote.url} takes {coming / 1e9:.3g} GB; "
                "give it more"
            )
        # What else lies in the directory that the user named for it is not the cache's.
        folders = [path for path in self._root.glob("*") if _FOLDER.fullmatch(path.name) and not path.is_symlink()]
        for part in (part for folder in folders for part in folder.glob(".*.tar.part")):
            with suppress(HeldError), Lock(part.with_suffix(".lock")):
                part.unlink(missing_ok=True)
        for file in (file for folder in folders for file in folder.glob("*.tar")):
            try:
                state = file.lstat()
            except FileNotFoundError:
                continue
            held.append((state.st_mtime, state.st_size, file))
        excess = sum(size for _, size, _ in held) + coming - self._limit
        for _, size, file in sorted(held):
            if excess <= 0:
                return
            # Processes that have it open keep it; the space is free when they close it.
            file.unlink(missing_ok=True)
            file.with_suffix(".idx").unlink(missing_ok=True)
            excess -= size


class Prefetcher:
    """Downloads shards ahead of their use, in threads of the training process.

    Args:
        fetch: downloads the shard of a number.
        stop: breaks off what `fetch` is at in other threads.
    """

    def __init__(self, fetch: Callable[[int], object], stop: Callable[[], None]) -> None:
        self._fetch, self._stop = fetch, stop
        self._threads = Daemons(_DOWNLOADS, "shards")
        self._asked: list[int] = []
        self._closed = False

    def want(self, shards: list[int]) -> None:
        """Fetch those of `shards` that the last call did not name."""
        known = set(self._asked)
        new = [shard for shard in shards if shard not in known]
        self._asked = shards
        for shard in new:
            self._threads.submit(partial(self._try, shard))

    def _try(self, shard: int) -> None:
        if self._closed:
            return
        try:
            self._fetch(shard)
        except (BadSampleError, WorkError) as error:
            # The reader that needs it will meet the same, and knows what to do about it.
            if not self._closed:
                log.info("ahead of need: %s", error)

    def close(self) -> None:
        """Start no more downloads, and break off those under way; the process may end whatever they are at."""
        self._closed = True
        self._stop()
        self._threads.close(_GRACE_S)
