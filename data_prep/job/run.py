"""A job: from a source to a set, through units of work that are done once and never lost.

    plan ──► make every unit ──► decide labels ──► seal every unit ──► rejects, identities, manifest

Every arrow ends in files that appear by rename, so that a stopped job continues from the files that exist. The engines
(`data_prep/engines/`) only carry units to workers. This module decides what a unit is, how often it is tried and when
it is set aside, so the set is the same to the byte with every engine.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.engines.engine import Engine, is_fatal
from data_prep.engines.slurm import stop_left_over
from data_prep.job.again import clear_again, remake, retry_unreachable
from data_prep.job.carry import carry_out
from data_prep.job.labels import decide, manifest_exists, write_set
from data_prep.job.plan import JobFiles, JobOptions, JobPlan, make_plan
from data_prep.job.progress import StageBars
from data_prep.job.restored import restore_part
from data_prep.job.unit_files import MADE, SEALED, SET_ASIDE, read_mark
from data_prep.job.work import MakeUnit, SealUnit
from dist_train.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.runtime.lock import only_job
from dist_train.runtime.written import MAKE_ROOM, remove_temporaries, write_json
from dist_train.section import first_difference

logger = logging.getLogger(__name__)

TRIES = 3


def run_job(out: Path, options: JobOptions, engine: Engine, progress: StageBars, tries: int = TRIES) -> Manifest:
    """Run a job to its end: plan it, or continue the job that is in `out`.

    Args:
        out: the set's directory.
        options: of the job; an unfinished job in `out` must have the same.
        engine: carries units to workers.
        progress: bars that count every unit.
        tries: how often a failing unit is tried before it is set aside.

    Raises:
        UserError: another job works on `out`, the job in `out` has other options, or it is no place for a new one.
        WorkError: the disk is full, nothing succeeds, or units had to be set aside (the set is complete without them).
    """
    layout = JobFiles(out.absolute())  # workers may be in another directory
    if not layout.plan.exists():
        _refuse_others(layout, options.source.path)
    with _full_disk_said(layout), _alone(layout):
        return finish_job(open_plan(layout, options), engine, progress, tries)


def open_plan(layout: JobFiles, options: JobOptions) -> JobPlan:
    """The plan in `layout`, made if there is none. The caller holds the lock.

    Raises:
        UserError: the plan has other options.
    """
    if layout.plan.exists():
        plan = JobPlan(layout)
        if found := first_difference(plan.described, options.described()):
            raise UserError(
                f"{layout.out}: its job was planned with other options: {found}; use another OUT, "
                f"or go on with the options it has: headcount prep resume {layout.out}"
            )
        return plan
    return make_plan(layout, options)


def resume_job(
    out: Path,
    engine: Engine,
    progress: StageBars,
    tries: int = TRIES,
    retry: bool = False,
    unreachable: bool = False,
) -> Manifest:
    """Run the job in `out` to its end, with the options in its plan.

    Args:
        out: the set's directory.
        engine: carries units to workers; may be another engine than at the start.
        progress: bars that count every unit.
        tries: how often a failing unit is tried.
        retry: whether to try units again that were set aside, even when the set is complete.
        unreachable: whether to try photos again whose addresses were unreachable, likewise.

    Raises:
        UserError: there is no job, or another process works on it.
        WorkError: as `run_job`.
    """
    layout = JobFiles(out.absolute())
    JobPlan(layout)
    with _full_disk_said(layout), _alone(layout):
        plan = JobPlan(layout)
        if retry and (again := [unit for unit in range(plan.units) if layout.set_aside(unit).exists()]):
            (layout.out / MANIFEST_NAME).unlink(missing_ok=True)
            for unit in again:
                layout.set_aside(unit).unlink()
        if unreachable:
            stop_left_over(layout.arrays)  # whose workers may be at units that are done again
            retry_unreachable(plan, engine, progress, tries)
        return finish_job(plan, engine, progress, tries)


def finish_job(plan: JobPlan, engine: Engine, progress: StageBars, tries: int = TRIES) -> Manifest:
    """Do the remaining work of a planned job. The caller holds the lock."""
    if manifest_exists(plan):
        logger.info("%s is complete already", plan.layout.out)
        return load_manifest(plan.layout.out)
    stop_left_over(plan.layout.arrays)
    clear_again(plan)
    _remove_temporaries(plan.layout)
    try:
        make_units(plan, engine, progress, tries)
        decision = decide(plan)
        while lacking := _unsealable(plan, decision.digests):
            remake(plan, lacking, engine, progress, tries)
            decision = decide(plan)
        _seal(plan, decision.digests, engine, progress, tries)
    finally:
        progress.end()
    _remove_temporaries(plan.layout)  # left by workers that were killed
    shards = [
        read_mark(plan.layout.sealed(unit), SEALED) for unit in range(plan.units) if plan.layout.done(unit).exists()
    ]
    manifest = write_set(plan, decision, shards)
    return _conclude(plan, manifest)


def make_units(plan: JobPlan, engine: Engine, progress: StageBars, tries: int = TRIES) -> None:
    """Make all units that are neither made nor set aside. The caller holds the lock.

    Raises:
        WorkError: the disk is full, or no unit at all can be made.
    """
    layout = plan.layout
    progress.start("photos", plan.rows_total)
    todo = []
    for unit in range(plan.units):
        if layout.done(unit).exists():
            progress.add(read_mark(layout.done(unit), MADE), before=True)
        elif layout.set_aside(unit).exists():
            progress.add({"given": plan.batch(unit).num_rows, "kept": 0}, before=True)
        else:
            todo.append(unit)
    failed = carry_out(
        engine, MakeUnit(layout.out, plan.options), todo, tries, lambda _, summary: progress.add(summary)
    )
    if todo and len(failed) == plan.units:
        raise WorkError(f"{layout.out}: no unit of {plan.units} could be made; the first: {failed[min(failed)]}")
    for unit, error in failed.items():
        logger.warning("unit %d failed %d times and is set aside: %s", unit, tries, error)
        write_json(layout.set_aside(unit), {"error": error})
        rows = plan.batch(unit).num_rows
        progress.add({"given": rows, "kept": 0})
    progress.end()


def _unsealable(plan: JobPlan, digests: Sequence[str]) -> list[int]:
    """The units whose shards are out of date, and whose pictures are neither in their part nor all in that shard."""
    layout, labels = plan.layout, pa.ipc.open_file(pa.memory_map(str(plan.layout.labels)))
    return [
        unit
        for unit in range(plan.units)
        if layout.done(unit).exists()
        and not layout.part(unit).exists()
        and not _is_sealed(layout, unit, digests[unit])
        and not restore_part(layout, unit, labels.get_batch(unit).column("label"))
    ]


def _is_sealed(layout: JobFiles, unit: int, digest: str) -> bool:
    """Whether a unit's shard has the labels of that digest."""
    mark = layout.sealed(unit)
    return mark.exists() and read_mark(mark, SEALED)["labels"] == digest


def _seal(plan: JobPlan, digests: Sequence[str], engine: Engine, progress: StageBars, tries: int) -> None:
    layout = plan.layout
    todo = []
    keep_parts = any(layout.set_aside(unit).exists() for unit in range(plan.units))
    for unit in range(plan.units):
        if not layout.done(unit).exists():
            continue
        if not _is_sealed(layout, unit, digests[unit]):
            layout.sealed(unit).unlink(missing_ok=True)
            todo.append(unit)
    progress.start("shards", len(todo))

    def sealed(unit: int, summary: dict[str, Any]) -> None:
        layout.restored(unit).unlink(missing_ok=True)
        if not keep_parts:
            layout.part(unit).unlink(missing_ok=True)
        progress.add({"given": 1, "pictures": summary["samples"]})

    failed = carry_out(engine, SealUnit(layout.out), todo, tries, sealed)
    if failed:
        unit = min(failed)
        raise WorkError(f"{layout.shard(unit)}: cannot be written: {failed[unit]}; run the same command again")
    for unit in range(plan.units):
        if not layout.done(unit).exists() or not read_mark(layout.sealed(unit), SEALED)["samples"]:
            layout.shard(unit).unlink(missing_ok=True)
            layout.shard(unit).with_suffix(".idx").unlink(missing_ok=True)
    progress.end()


def _conclude(plan: JobPlan, manifest: Manifest) -> Manifest:
    layout = plan.layout
    aside = [unit for unit in range(plan.units) if layout.set_aside(unit).exists()]
    if aside:
        raise WorkError(
            f"{layout.out}: {len(aside)} of {plan.units} units were set aside, {_rows(plan, aside)} inputs; the set is "
            f"complete without them. The first: {read_mark(layout.set_aside(aside[0]), SET_ASIDE)['error']}. "
            f"Try them again with `headcount prep resume {layout.out} --retry`"
        )
    for unit in range(plan.units):
        layout.part(unit).unlink(missing_ok=True)
    return manifest


def _refuse_others(layout: JobFiles, source: Path) -> None:
    """Refuse an output without a job that has files of others: those of a set would be overwritten and deleted.

    An output in a folder of photos is refused, too: the next job on the folder would take crops for photos.
    """
    place, target = source.resolve(), layout.out.resolve()
    if place == target or place in target.parents:
        raise UserError(f"OUT {layout.out} is the source {source}, or lies in it; use an OUT beside it")
    if (layout.out / MANIFEST_NAME).exists():
        raise UserError(f"{layout.out}: holds a set already, made by something else; use another OUT")
    if found := next(layout.out.glob("x-*.tar"), None):
        raise UserError(f"{layout.out}: holds a shard already, {found.name}, and no job; use another OUT")


def _alone(layout: JobFiles) -> AbstractContextManager[None]:
    """A context that holds the job's lock: one job at a time works on an output."""
    layout.home.mkdir(parents=True, exist_ok=True)
    return only_job(layout.lock, layout.out)


@contextmanager
def _full_disk_said(layout: JobFiles) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_fatal(error):
            raise
        raise WorkError(f"{layout.out}: {error.strerror}; {MAKE_ROOM}") from error


def _rows(plan: JobPlan, units: Iterable[int]) -> int:
    return sum(plan.batch(unit).num_rows for unit in units)


def _remove_temporaries(layout: JobFiles) -> None:
    for directory in (layout.home, layout.home / "units", layout.home / "shards", layout.out):
        remove_temporaries(directory)
    shutil.rmtree(layout.home / "planning", ignore_errors=True)
