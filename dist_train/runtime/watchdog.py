"""A rank that hangs, or whose launcher is gone, must not hold the job for ever."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from dist_train.runtime.looking import looking

POLL_S = 0.5
GRACE_S = 3.0
"""Between the stack traces and the end: the first rank that ends makes the launcher end the others, who also write."""
HUNG_STATUS = 1


@contextmanager
def launcher_watched() -> Iterator[None]:
    """Inside, this process ends when the torchrun that started it has gone; without one, nothing is watched.

    Nobody else tells a rank whose torchrun was killed, and a new job may be about to write into the same run directory.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    launcher = os.getppid()

    def look() -> None:
        if os.getppid() != launcher:
            _end(os.environ.get("RANK", "0"), "the process that launched this rank is gone", 0.0)

    with looking(look, POLL_S, "watchdog of the launcher"):
        yield


class Watchdog:
    """While entered, ends this process when a step takes too long, after it wrote the stacks of all its threads.

    When one rank hangs, all others wait for it in their next exchange, so that each rank's watchdog tells where it
    stands and the one that differs is the culprit. A launcher that restarts jobs then starts anew from the newest
    checkpoint.

    Args:
        limit_s: longest time between two calls of `beat`.
        rank: this process, for the log.
    """

    def __init__(self, limit_s: float, rank: int) -> None:
        self._limit_s, self._rank = limit_s, rank
        self._last: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step is done."""
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around work that has no limit."""
        self._last = None
        yield
        self.beat()

    def _watch(self) -> None:
        while not self._done.wait(min(POLL_S, self._limit_s / 4)):
            if (last := self._last) is not None and time.monotonic() - last > self._limit_s:
                _end(str(self._rank), f"no step for {self._limit_s:g} s (train.timeout_s)\n{stacks()}", GRACE_S)

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def _end(rank: str, reason: str, grace_s: float) -> None:
    text = "".join(f"rank {rank}: {line}\n" for line in reason.splitlines())
    with suppress(OSError):  # a launcher that is gone reads no more
        sys.stderr.write(text)  # at once, so that ranks do not mix their lines
        sys.stderr.flush()
    time.sleep(grace_s)
    os._exit(HUNG_STATUS)


def stacks() -> str:
    """Where every thread of this process stands."""
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()
    except OSError:  # no room for a file: straight to the log, where ranks may mix their lines
        faulthandler.dump_traceback(all_threads=True)
        return "its threads stand as told above"
