"""Files that anybody may have written: plain names, bounded reading, what is wrong in them."""

import os
import stat
from pathlib import Path
from typing import Any, Literal

from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import ValidationError

from dist_train.errors import UserError
from dist_train.runtime.text import shown

MAX_NAME_BYTES = 255  # of every file system in use


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
