"""Files: names that stay in their directory, bounded reading, digests and locks."""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import ValidationError

from dist_train.errors import UserError, WorkError

MAX_NAME_BYTES = 255  # of every file system in use
_MAX_SHOWN = 80
_BLOCK_BYTES = 1 << 22


def plain_name(name: object, where: str) -> str:
    """`name` if it is the name of a file directly in some directory.

    Args:
        name: as a manifest, a list of checksums or the like gives it.
        where: the file that gives it, for the message.

    Raises:
        UserError: a path, `.` or `..`, empty, too long, or with characters that no file name needs.
    """
    wrong = "is not text" if not isinstance(name, str) else _wrong_with(name)
    if wrong:
        raise UserError(f"{where}: name {shown(name)} {wrong}; expected the plain name of a file beside it; refused")
    return str(name)


def _wrong_with(name: str) -> str:
    if not name:
        return "is empty"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "leads to another directory"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        return "has control characters"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not Unicode text"
    return f"is {length} bytes long" if length > MAX_NAME_BYTES else ""


def shown(value: object) -> str:
    """`value` for a message: on one line, of bounded length, whatever is in it."""
    if isinstance(value, list | tuple | dict | set):
        return type(value).__name__
    if isinstance(value, int) and value.bit_length() > 8 * _MAX_SHOWN:  # Python does not print the longest
        return f"a number of {value.bit_length()} bits"
    text = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def read_bounded(path: Path, limit: int) -> bytes:
    """Content of a file that should be small.

    Raises:
        OSError: it cannot be read.
        ValueError: a pipe, a device or a directory, or larger than `limit` bytes.
    """
    # Non-blocking: a pipe in place of a file is refused, not waited for.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("a pipe, a device or a directory, expected a file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{status.st_size} bytes, expected at most {limit}")
    return data


def map_array(path: Path, mode: Literal["r", "c"]) -> NDArray[Any]:
    """The array in a `.npy`, mapped into memory: neither an archive nor a pickle, which `np.load` takes too.

    Raises:
        OSError: it cannot be read.
        ValueError: damaged.
    """
    try:
        return open_memmap(path, mode=mode)
    except (OSError, ValueError):
        raise
    except Exception as error:  # NumPy parses the head as Python, and raises whatever that does
        raise ValueError(f"its head is damaged ({type(error).__name__})") from error


def first_fault(error: OSError | ValueError) -> str:
    """What a file's content has that it should not, as pydantic or the reading of it found."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False, include_context=False)[0]
    if fault["type"] == "json_invalid":
        return f"not JSON ({fault['msg'].removeprefix('Invalid JSON: ')})"
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "missing":
        return f"{place} is missing"
    return f"{place or 'all of it'} is {shown(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; it is free again when its holder ends, however it ends.

    Raises:
        WorkError: another process held it for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkError(f"waited {timeout_s:g} s for another process to release {path}") from None
                time.sleep(0.05)
        yield
