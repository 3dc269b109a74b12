"""Results of all units of a job that goes on as a whole or not at all."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from data_prep.engines.engine import Outcome, Task, attempt
from data_prep.engines.local import LocalEngine
from dist_train.errors import WorkError
from dist_train.runtime.written import MAKE_ROOM


def results(task: Task, units: Sequence[int], workers: int, out: Path) -> Generator[tuple[int, dict[str, Any]]]:
    """Each unit and its summary, in the order in which they end; the first failure ends the work.

    Args:
        task: what is done.
        units: numbers of the units.
        workers: processes; with one unit or worker, all is done in this process, since another takes a second to start.
        out: output of the job, for messages.

    Raises:
        WorkError: a unit failed.
    """
    with closing(_outcomes(task, units, min(workers, len(units)))) as outcomes:
        for outcome in outcomes:
            if outcome.summary is None:
                reason = outcome.error.removeprefix("WorkError: ").removeprefix("UserError: ")
                raise WorkError(f"{reason}; {MAKE_ROOM}" if outcome.fatal else f"{out}: {reason}")
            yield outcome.unit, outcome.summary


def _outcomes(task: Task, units: Sequence[int], workers: int) -> Generator[Outcome]:
    if workers > 1:
        yield from LocalEngine(workers).run(task, units)
    else:
        for unit in units:
            yield attempt(task, unit)
