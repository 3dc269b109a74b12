"""Text files of users."""

from pathlib import Path

from dist_train.errors import UserError
from dist_train.runtime.files import first_fault, read_bounded

_MOST_BYTES = 1 << 30  # lists of the largest sets have a tenth of that


def read_text(path: Path) -> str:
    """The content of a text file of a user.

    Raises:
        UserError: it cannot be read, is larger than 1 GiB, or is not UTF-8.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 (byte {data[error.start]:#x}); save it as UTF-8") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file of a user.

    Raises:
        UserError: it cannot be read, or is larger than 1 GiB.
    """
    try:
        return read_bounded(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {first_fault(error)}") from error
