"""What an engine is: it has a task done for every unit, once, and says how each ended.

Trying again, setting aside and stopping are the job's business (`data_prep/job/run.py`), the same for all engines.
"""

import errno
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

Task = Callable[[int], dict[str, Any]]
"""Does one unit and sums it up in JSON values. Picklable; what it opens it opens on its first call."""

# Trouble that the next unit would meet as well.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Outcome(NamedTuple):
    """How a unit ended.

    Attributes:
        unit: its number.
        summary: what the task returned; None if it failed.
        error: why it failed; empty if it did not.
        fatal: no other unit can succeed either.
    """

    unit: int
    summary: dict[str, Any] | None
    error: str = ""
    fatal: bool = False


class Engine(Protocol):
    """Has tasks done."""

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """The outcome of every unit in `units`, in the order in which they end.

        A unit whose worker dies has failed. Closing the generator stops the work.
        """


def attempt(task: Task, unit: int) -> Outcome:
    """Do `unit`; whatever it raises becomes its outcome."""
    try:
        return Outcome(unit, task(unit))
    except Exception as error:  # a unit may fail in any way, and the job goes on
        return Outcome(unit, None, f"{type(error).__name__}: {error}", is_fatal(error))


def is_fatal(error: BaseException | None) -> bool:
    """Whether the disk is full or may not be written, here or in what caused `error`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FATAL:
            return True
        error = error.__cause__
    return False
