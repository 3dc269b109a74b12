"""Messages and exit statuses for errors that no command expected."""

import errno
import os
import select
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dist_train.runtime.terminal import echo
from dist_train.runtime.text import first_line

CLOSED_PIPE_STATUS = 141
"""Of a program that a closed pipe ends, as shells give it for SIGPIPE."""
# The user's to mend: what was named cannot be had, or not be written. All others are failures of the work.
_USERS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
        *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
    }
)
# Of RuntimeError, OpenCV's and onnxruntime's errors, which are no MemoryError.
_NO_MEMORY: tuple[str, ...] = (
    "can't allocate memory",
    "not enough memory",
    "insufficient memory",
    "bad_alloc",
    "failed to allocate",
)
_NO_MEMORY += ("out of memory", "can't start new thread", "cannot allocate memory", "unable to allocate")
_ROOT = Path(__file__).parents[1]


class Output:
    """A stream that remembers whether writing to it failed: the error itself names no file.

    Attributes:
        trouble: the first error.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.trouble: OSError | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the stream's
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self.trouble = self.trouble or error
            raise

    def flush(self) -> None:
        """Write what the stream still holds."""
        try:
            self._stream.flush()
        except OSError as error:
            self.trouble = self.trouble or error
            raise


def report(error: BaseException, output: Output) -> int:
    """Print what went wrong, and return the exit status.

    Args:
        error: that was raised.
        output: standard output, which it may have come from.
    """
    if isinstance(error, BrokenPipeError) and _reader_gone():
        return _report_output(error)
    if isinstance(error, OSError) and output.trouble is not None and error.errno == output.trouble.errno:
        return _report_output(output.trouble)
    if isinstance(error, OSError) and error.filename is not None:
        users = error.errno in _USERS
        echo(f"{'error' if users else 'failed'}: {_path(error)}: {error.strerror or error}", err=True)
        return 2 if users else 1
    if _lacks_memory(error):
        echo(f"failed: not enough memory, at {_place(error)}: {first_line(error)}", err=True)
        return 1
    if isinstance(error, RecursionError):
        echo(f"failed: an input is nested too deeply, at {_place(error)}", err=True)
        return 1
    echo("".join(traceback.format_exception(error)), err=True, nl=False)
    echo("This is a fault of headcount. Please report it, with the lines above and the command.", err=True)
    return 1


def hidden_by(end: SystemExit) -> BaseException | None:
    """The error that typer took for a closed input or output; None if there was none."""
    error: BaseException | None = end
    while error is not None:
        if isinstance(error, BrokenPipeError | EOFError):
            return error
        error = error.__cause__ or error.__context__
    return None


def close_output(status: int) -> int:
    """Write the rest of the output, and return the exit status, which a full disk or a closed pipe may change."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError as error:
        return status or _report_output(error)
    except ValueError:  # closed already
        pass
    return status


def _report_output(error: OSError) -> int:
    # What could not be written stays in the stream, and the interpreter would try once more at its end.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return CLOSED_PIPE_STATUS
    echo(f"failed: standard output: {error.strerror}", err=True)
    return 1


def _reader_gone() -> bool:
    """Whether nobody reads standard output, or standard error, any more."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _path(error: OSError) -> str:
    name = error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes) else f"descriptor {name}"


def _lacks_memory(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        if isinstance(cause, MemoryError) or any(sign in text for sign in _NO_MEMORY):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        cause = cause.__cause__
    return False


def _place(error: BaseException) -> str:
    """The innermost line of this project that `error` went through."""
    place = "start"
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_ROOT):
            place = f"{file.relative_to(_ROOT)}:{line}"
    return place
