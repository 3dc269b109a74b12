"""The handling of Ctrl-C, SIGTERM and a closed terminal: one line and exit status 130 for every command.

While a command starts there is nothing to put in order, and the first signal ends it. Afterwards the first one is
raised as `KeyboardInterrupt`, so that files and processes are closed, and the next ends the process at once: files
appear by rename, so what is cut off then is not counted. A training loop has a polite end of its own for as long as it
runs (`dist_train.runtime.stop_signal`).
"""

import os
import signal
from contextlib import suppress
from types import FrameType

from dist_train.runtime.stop_signal import INTERRUPTED_STATUS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_seen: list[int] = []  # signals that came, in this process


def end_at_once() -> None:
    """Let every further signal end the process at once."""
    _handle(_end)


def raise_once() -> None:
    """Let the next signal raise `KeyboardInterrupt`, and the one after it end the process."""
    _handle(_raise)


def interrupted() -> bool:
    """Whether a signal has come; a failure after it is a consequence of it."""
    return bool(_seen)


def say() -> None:
    """Print the one line, on the first of several ranks."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # whoever read it may be gone
            os.write(2, b"interrupted\n")


def _handle(handler: "signal._HANDLER") -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as after nohup, or in the background of a script
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    end_at_once()
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    say()
    os._exit(INTERRUPTED_STATUS)
