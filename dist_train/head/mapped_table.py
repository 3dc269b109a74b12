"""Tables of rows in memory-mapped files of a directory, which one run at a time holds."""

import json
import logging
import mmap
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.lock import HeldError, Lock, NoLocksError

logger = logging.getLogger(__name__)

_WAIT_S = 10.0  # the data workers of a run that was killed hold its locks, too, until they notice: 5 s


class MappedTables:
    """One rank's tables in a directory, which the rank holds until it closes them or ends, however it ends.

    Its share of the classes is `RANK-of-RANKS`: a table is the file `NAME-SHARE`, with its shape and type in
    `NAME-SHARE.json`, and whoever has the lock `rows-SHARE.lock` holds the share. Shares of the same tables among
    another number of ranks are what an earlier run left. They hold nothing that is needed, and every rank removes all
    of them that it sees, since the directory may be each machine's own.

    Args:
        directory: made where it is not there.
        names: of the tables.
        owner: (rank, world_size).

    Raises:
        UserError: another run holds the directory, or it cannot be written.
    """

    def __init__(self, directory: Path, names: Collection[str], owner: tuple[int, int]) -> None:
        self._directory = directory
        self._share = _share(*owner)
        self._lock: Lock | None = None
        path = directory / f"rows-{self._share}.lock"
        try:
            self._lock = _hold(path)
            self._remove_other_shares(names, owner[1])
        except NoLocksError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run is there", path, error.strerror)
        except OSError as error:
            self.close()
            raise UserError(f"head.storage_dir: cannot write {error.filename or path}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def open(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """A table of zeros; see `map_table`."""
        return map_table(self._directory / f"{name}-{self._share}", shape, dtype)

    def unnamed(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Zeros for a copy of a table, in a file of the directory that has no name and goes with the tensor.

        Raises:
            UserError: the disk is full.
        """
        what = f"a checkpoint's copy of {self._directory / name}-{self._share}"
        try:
            with TemporaryFile(dir=self._directory) as file:
                return _tensor(_view(file.fileno(), what, shape, dtype), shape, dtype)
        except OSError as error:
            raise UserError(f"head.storage_dir: cannot write {what}: {error.strerror}") from error

    def close(self) -> None:
        """Let other runs have the directory; safe to repeat."""
        if self._lock is not None:
            self._lock.close()

    def _remove_other_shares(self, names: Collection[str], world_size: int) -> None:
        pattern = re.compile(rf"({'|'.join(map(re.escape, names))}|rows)-(\d{{5,}})-of-(\d{{5,}})(\.json|\.lock)?")
        shares: dict[str, list[Path]] = {}
        for path in self._directory.iterdir():
            found = pattern.fullmatch(path.name)
            if found is not None and int(found[3]) != world_size:
                shares.setdefault(_share(int(found[2]), int(found[3])), []).append(path)
        for share, paths in sorted(shares.items()):
            lock = self._directory / f"rows-{share}.lock"
            with _hold(lock):  # another rank of this run may be removing the same
                for path in paths:
                    if path != lock:
                        path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)


def _share(rank: int, world_size: int) -> str:
    return f"{rank:05d}-of-{world_size:05d}"


def _hold(path: Path) -> Lock:
    """The lock of a share.

    Raises:
        UserError: another process holds it.
        OSError: the file system has no locks, or the file cannot be made.
    """
    try:
        return Lock(path, _WAIT_S)
    except HeldError as error:
        who = f"{error.holder}, since {error.since}" if error.holder else "it is not known which"
        raise UserError(
            f"head.storage_dir: another run holds {path} ({who}); wait for it, stop it, or give another directory"
        ) from error


def map_table(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A shared mapping of `path` as a tensor; its disk space is reserved, so a full disk shows here and not later.

    Beside the file lies `path.json` with its shape and type. The mapping starts with zeros, since a run continues from
    its checkpoint: a file of the same shape, or one whose description a kill left unwritten, is replaced. Whoever still
    maps that one, where the file system has no locks, keeps its contents.

    Raises:
        UserError: the file's description has another shape, or the disk is full.
    """
    about = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
    note = path.with_name(path.name + ".json")
    found = about
    with suppress(OSError, ValueError):
        found = json.loads(note.read_text(encoding="utf-8"))
    if path.exists() and found != about:
        raise UserError(
            f"head.storage_dir: {path} holds {found}, expected {about}; "
            "it belongs to another run: give another directory or delete it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in (path, note):
            old.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            view = _view(descriptor, str(path), shape, dtype)
            note.write_text(json.dumps(about), encoding="utf-8")
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"head.storage_dir: cannot write {path}: {error.strerror}") from error
    if view is not None:
        view.madvise(mmap.MADV_RANDOM)  # chosen rows are scattered; read-ahead would fetch their idle neighbours
    return _tensor(view, shape, dtype)


def _view(descriptor: int, what: str, shape: tuple[int, int], dtype: torch.dtype) -> mmap.mmap | None:
    """The pages of an empty file, grown to hold a table; None for a table without rows."""
    size = shape[0] * shape[1] * dtype.itemsize
    if size == 0:
        return None
    disk = os.statvfs(descriptor)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        free = disk.f_bavail * disk.f_frsize
        raise UserError(
            f"head.storage_dir: {what} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free ({error.strerror})"
        ) from error
    return mmap.mmap(descriptor, size)


def _tensor(view: mmap.mmap | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if view is None:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.frombuffer(view, dtype=np.uint8)).view(dtype).view(shape)
