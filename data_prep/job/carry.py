"""The work of units through an engine: how often a unit is tried."""

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from data_prep.engines.engine import Engine, Task
from dist_train.errors import WorkError
from dist_train.runtime.written import MAKE_ROOM

logger = logging.getLogger(__name__)


def carry_out(
    engine: Engine, task: Task, units: Iterable[int], tries: int, done: Callable[[int, dict[str, Any]], None]
) -> dict[int, str]:
    """Do `task` for `units`; return the errors of the units that failed in every try, by unit.

    A failed unit is tried again after all other units: the cause may have passed by then.

    Args:
        engine: carries units to workers.
        task: done for each unit.
        units: numbers of the units.
        tries: how often a failing unit is tried.
        done: told of every unit's summary.

    Raises:
        WorkError: the disk is full.
    """
    failed = dict.fromkeys(units, "")
    for _ in range(tries):
        todo, failed = list(failed), {}
        if not todo:
            break
        with closing(engine.run(task, todo)) as outcomes:  # workers stop however this ends
            for outcome in outcomes:
                if outcome.fatal:
                    raise WorkError(f"{outcome.error}; {MAKE_ROOM}")
                if outcome.summary is None:
                    logger.info("unit %d failed: %s", outcome.unit, outcome.error)
                    failed[outcome.unit] = outcome.error
                else:
                    done(outcome.unit, outcome.summary)
    return failed
