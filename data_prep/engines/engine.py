"""The interface of engines: an engine has a task done once for every unit and yields the outcome of each.

A job decides what is tried again or set aside, and when to stop (`data_prep/job/run.py`), in one way for all engines.
"""

import errno
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

Task = Callable[[int], dict[str, Any]]
"""Function that does one unit and returns a summary of JSON values. Picklable; it opens files on its first call."""

# Errors that every further unit would meet as well.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Outcome(NamedTuple):
    """The outcome of a unit.

    Attributes:
        unit: its number.
        summary: result of the task; None if it failed.
        error: reason of a failure; empty if the task succeeded.
        fatal: whether no other unit can succeed either.
    """

    unit: int
    summary: dict[str, Any] | None
    error: str = ""
    fatal: bool = False


class Engine(Protocol):
    """An engine, which has a task done for units."""

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """Outcomes of all `units`, in the order in which they end.

        A unit whose worker dies has failed. Closing the generator stops the work.
        """


def attempt(task: Task, unit: int) -> Outcome:
    """The outcome of `task` for `unit`, with any exception as its error."""
    try:
        return Outcome(unit, task(unit))
    except Exception as error:  # a unit may fail in any way, and the job continues
        return Outcome(unit, None, f"{type(error).__name__}: {error}", is_fatal(error))


def is_fatal(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes says that the disk is full or may not be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FATAL:
            return True
        error = error.__cause__
    return False
