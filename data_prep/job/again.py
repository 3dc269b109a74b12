"""Units done again: those with photos that were unreachable, and those that lack a picture which is wanted now.

A unit is made anew beside the old one, and takes its place with all that the old one had: a server that is gone, or
shows something else now, takes nothing out of a set. Where new photos change the labels of other units, the pictures of
these are taken from their shards; a picture that was left out is in none, and its unit is done again.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_prep.engines.engine import Engine
from data_prep.job.carry import carry_out
from data_prep.job.plan import AGAIN, JobFiles, JobPlan
from data_prep.job.progress import StageBars
from data_prep.job.restored import UNREACHABLE, join_unit
from data_prep.job.unit_files import MADE, read_mark, read_statistics
from data_prep.job.work import STATISTICS, MakeUnit
from data_prep.sources.base import Raw, Row
from dist_train.data.manifest import MANIFEST_NAME
from dist_train.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # photos in memory while it is looked whether any can be reached
_SILENT = 128  # addresses of a host without an answer, after which no more of it are asked for


def retry_unreachable(plan: JobPlan, engine: Engine, progress: StageBars, tries: int) -> None:
    """Do the units with photos that were unreachable again; the caller holds the lock and finishes the job.

    Raises:
        WorkError: the disk is full.
    """
    layout = plan.layout
    with _beside(plan) as again:
        had = [
            unit
            for unit in range(plan.units)
            if layout.done(unit).exists() and UNREACHABLE in read_mark(layout.done(unit), MADE)["reasons"]
        ]
        todo = list(_reachable(plan, had))
        if len(todo) < len(had):
            silent = len(had) - len(todo)
            logger.info("of %d units with unreachable photos, none can be reached in %d", len(had), silent)

        def judge(unit: int, summary: dict[str, Any]) -> None:
            progress.add(summary)
            gained, kept = join_unit(layout, again, unit)
            if kept:
                logger.info("unit %d: %d of its photos are gone now, or others, and stay as they were", unit, kept)
            if gained:
                _replace(layout, again, unit)

        for unit, error in _made_again(plan, todo, engine, progress, tries, judge).items():
            logger.warning("unit %d cannot be done again now and stays as it was: %s", unit, error)


def remake(plan: JobPlan, units: Sequence[int], engine: Engine, progress: StageBars, tries: int) -> None:
    """Do units again whose shards lack pictures that have a label now; the caller holds the lock.

    Where a unit cannot be done, the photos of the pictures that it lacks count as unreachable.

    Raises:
        WorkError: the disk is full.
    """
    with _beside(plan) as again:

        def judge(unit: int, summary: dict[str, Any]) -> None:
            progress.add(summary)
            join_unit(plan.layout, again, unit)
            _replace(plan.layout, again, unit)

        for unit, error in _made_again(plan, units, engine, progress, tries, judge).items():
            logger.warning("unit %d cannot be done again now and keeps what is in its shard: %s", unit, error)
            join_unit(plan.layout, again, unit, error)
            _replace(plan.layout, again, unit)


def clear_again(plan: JobPlan) -> None:
    """Remove the files of units that were done again; one that was stopped on the way into its place gets there."""
    layout, again = plan.layout, JobFiles(plan.layout.out, AGAIN)
    for unit in range(plan.units if again.units.exists() else 0):
        if again.done(unit).exists() and not layout.done(unit).exists():
            _replace(layout, again, unit)
    shutil.rmtree(again.units, ignore_errors=True)


@contextmanager
def _beside(plan: JobPlan) -> Iterator[JobFiles]:
    """Files for units that are done again, in a directory that is there for this time."""
    again = JobFiles(plan.layout.out, AGAIN)
    clear_again(plan)
    again.units.mkdir()
    try:
        yield again
    finally:
        clear_again(plan)


def _made_again(
    plan: JobPlan,
    units: Sequence[int],
    engine: Engine,
    progress: StageBars,
    tries: int,
    judge: Callable[[int, dict[str, Any]], None],
) -> dict[int, str]:
    """Make units beside the old ones; the errors of those that failed, by unit."""
    progress.start("photos", sum(plan.batch(unit).num_rows for unit in units))
    try:
        return carry_out(engine, MakeUnit(plan.layout.out, plan.options, AGAIN), units, tries, judge)
    finally:
        progress.end()


def _reachable(plan: JobPlan, units: list[int]) -> Iterator[int]:
    """The units of which an unreachable photo can be reached now.

    A host that stays silent is soon asked no more: each of its addresses takes several tries, and many seconds.
    """
    reader = plan.options.source.reader()
    silent: Counter[bytes] = Counter()  # addresses of a host that were asked for since one answered
    for unit in progress_bar(units, desc="ask again", unit="unit", disable=not units):
        reasons = read_statistics(plan.layout.statistics(unit), ["reason"], STATISTICS)["reason"].to_pylist()
        rows = [row for row, reason in zip(plan.rows(unit), reasons, strict=True) if reason == UNREACHABLE]
        for start in range(0, len(rows), _AT_ONCE):
            asked = [row for row in rows[start : start + _AT_ONCE] if silent[_host(row)] < _SILENT]
            answers = [isinstance(raw, Raw) for raw in reader.read(asked)]
            for row, answered in zip(asked, answers, strict=True):
                silent[_host(row)] = 0 if answered else silent[_host(row)] + 1
            if any(answers):
                yield unit
                break
    reader.close()


def _host(row: Row) -> bytes:
    """The protocol and host of a row's address."""
    return b"/".join(row.location.split(b"/", 3)[:3])


def _replace(layout: JobFiles, again: JobFiles, unit: int) -> None:
    """Put a unit done again into the place of the old one, whose mark goes first and comes last."""
    (layout.out / MANIFEST_NAME).unlink(missing_ok=True)
    layout.sealed(unit).unlink(missing_ok=True)
    layout.done(unit).unlink(missing_ok=True)
    for file in (JobFiles.part, JobFiles.statistics, JobFiles.done):
        if file(again, unit).exists():  # not where an earlier call was stopped after it
            file(again, unit).replace(file(layout, unit))
