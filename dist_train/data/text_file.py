"""Text files of users."""

from pathlib import Path

from dist_train.errors import UserError


def read_text(path: Path) -> str:
    """The content of a text file of a user.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
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
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
