"""A polite end: a signal asks for a stop at the next step boundary instead of ending the process."""

import signal
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""Ctrl-C; a scheduler's or torchrun's end; a terminal that is closed; Slurm's warning before its end.

SIGUSR1 is left to communication libraries.
"""

INTERRUPTED_STATUS = 130
"""Exit status after a signal, as shells give it for SIGINT."""


class StopSignal:
    """While entered, `asked` tells whether a stop signal has come. Repeated signals change nothing."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __enter__(self) -> Self:
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = [number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP)]
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
