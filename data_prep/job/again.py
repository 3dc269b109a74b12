"""Units with photos that were unreachable, done again; and pictures of sealed units, taken back out of their shards.

A unit is made anew beside the old one, and takes its place only where photos that were unreachable have answered and
none is lost: a server that is gone, or shows something else now, takes nothing out of a set. The pictures of a complete
job are in its shards alone; where new photos change the labels of other units, their pictures are taken from there.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from data_prep.engines.engine import Engine
from data_prep.job.carry import carry_out
from data_prep.job.plan import AGAIN, JobFiles, JobPlan
from data_prep.job.progress import StageBars
from data_prep.job.unit_files import MADE, read_mark, read_statistics
from data_prep.job.work import LEFT_OUT, STATISTICS, MakeUnit, sample_key
from data_prep.sources.base import Raw, Row
from dist_train.data.manifest import MANIFEST_NAME
from dist_train.data.tars import Entry, walk_tar
from dist_train.errors import UserError
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.written import written

logger = logging.getLogger(__name__)

UNREACHABLE = "unreachable"
_AT_ONCE = 64  # photos in memory while it is looked whether any can be reached
_SILENT = 128  # addresses of a host without an answer, after which no more of it are asked for


def retry_unreachable(plan: JobPlan, engine: Engine, progress: StageBars, tries: int) -> list[int]:
    """Do the units with photos that were unreachable again; the caller holds the lock and finishes the job.

    Returns:
        The units that were replaced, whose shards are out of date.

    Raises:
        WorkError: the disk is full.
    """
    layout, again = plan.layout, JobFiles(plan.layout.out, AGAIN)
    had = [
        unit
        for unit in range(plan.units)
        if layout.done(unit).exists() and UNREACHABLE in read_mark(layout.done(unit), MADE)["reasons"]
    ]
    todo = list(_reachable(plan, had))
    if len(todo) < len(had):
        logger.info("of %d units with unreachable photos, none can be reached in %d", len(had), len(had) - len(todo))
    shutil.rmtree(again.units, ignore_errors=True)
    again.units.mkdir()
    replaced: list[int] = []

    def judge(unit: int, summary: dict[str, Any]) -> None:
        progress.add(summary)
        if _is_better(layout, again, unit):
            _replace(layout, again, unit)
            replaced.append(unit)

    progress.start("photos", sum(plan.batch(unit).num_rows for unit in todo))
    try:
        failed = carry_out(engine, MakeUnit(layout.out, plan.options, AGAIN), todo, tries, judge)
    finally:
        progress.end()
        shutil.rmtree(again.units, ignore_errors=True)
    for unit, error in failed.items():
        logger.warning("unit %d cannot be done again now and stays as it was: %s", unit, error)
    return replaced


def restore_part(layout: JobFiles, unit: int, labels: pa.Array) -> bool:
    """Write the pictures of a unit that was sealed before, from its shard; False where a wanted one is not there.

    Args:
        layout: files of the job.
        unit: number of the unit.
        labels: of its inputs; pictures of inputs that are left out become zeros, which nobody reads.
    """
    shard = layout.shard(unit)
    # By its own headers: where a job was killed between the two renames, the index beside a shard is that of another.
    try:
        members = {found.name: found for found in walk_tar(shard) if isinstance(found, Entry)}
    except UserError:  # it is not there, or not a tar
        members = {}
    table = read_statistics(layout.statistics(unit), ["position", "sizes", "extensions"], STATISTICS)
    columns = (table[name].to_pylist() for name in ("position", "sizes", "extensions"))
    wanted = []
    for label, position, sizes, extensions in zip(labels.to_pylist(), *columns, strict=True):
        for number, (size, extension) in enumerate(zip(sizes, extensions, strict=True)):
            member = members.get(f"{sample_key(position, number, len(sizes))}.{extension}")
            if label != LEFT_OUT and (member is None or member.size != size):
                return False
            wanted.append((size, None if label == LEFT_OUT else member))
    with ExitStack() as opened:
        part = opened.enter_context(written(layout.restored(unit)))
        tar = opened.enter_context(shard.open("rb")) if members else None
        for size, member in wanted:
            if member is None or tar is None:
                part.write(bytes(size))
            else:
                tar.seek(member.offset)
                part.write(tar.read(size))
    return True


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


def _is_better(layout: JobFiles, again: JobFiles, unit: int) -> bool:
    """Whether photos of a unit done again have answered that were unreachable, and all that it had before are there."""
    old, new = (
        read_statistics(files.statistics(unit), ["reason"], STATISTICS)["reason"].to_pylist()
        for files in (layout, again)
    )
    lost = sum(before is None and after is not None for before, after in zip(old, new, strict=True))
    gained = sum(before == UNREACHABLE != after for before, after in zip(old, new, strict=True))
    if lost:
        logger.warning("unit %d stays as it was: %d of its photos would be lost, %d more answer", unit, lost, gained)
    return gained > 0 and not lost


def _replace(layout: JobFiles, again: JobFiles, unit: int) -> None:
    """Put a unit done again into the place of the old one; between the steps it counts as not made."""
    (layout.out / MANIFEST_NAME).unlink(missing_ok=True)
    layout.sealed(unit).unlink(missing_ok=True)
    layout.done(unit).unlink()
    again.part(unit).replace(layout.part(unit))
    again.statistics(unit).replace(layout.statistics(unit))
    again.done(unit).replace(layout.done(unit))
