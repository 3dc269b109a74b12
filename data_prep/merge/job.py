"""A merge: from several sets to one, shard by shard. One that was stopped anywhere goes on where it was.

    open the sets ──► join their identities ──► move every shard ──► identities, manifest

The label of every identity follows from the tables of identities alone, so a start after a stop finds it again, and
keeps the shards whose marks are there. What was begun of other sets is refused.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.engines.results import results
from data_prep.job.begun import refuse_others
from data_prep.job.plan import JobFiles
from data_prep.job.progress import StageBars
from data_prep.merge.identities import Joined, join_identities
from data_prep.merge.move import Moved, MoveShard, Origin, labels_path
from data_prep.merge.sameness import Sameness
from data_prep.merge.sources import MergeSource, open_merge_sources
from data_prep.shards import write_set
from dist_train.data.aligner import Aligner, common_aligner
from dist_train.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from dist_train.errors import WorkError
from dist_train.runtime.lock import only_job
from dist_train.runtime.written import MAKE_ROOM, remove_temporaries, write_failures, write_json, written

logger = logging.getLogger(__name__)

PLAN_VERSION = 1
_HASHED_NAMES = 10_000  # at a time


class Merge(NamedTuple):
    """What came of a merge.

    Attributes:
        manifest: of the new set.
        sources: the sets.
        joined: their identities.
        left_out: samples that cannot be used; 0 where the set was complete before.
    """

    manifest: Manifest
    sources: list[MergeSource]
    joined: Joined
    left_out: int


def merge_sets(
    paths: Sequence[Path],
    out: Path,
    sameness: Sameness,
    label_key: str,
    workers: int,
    progress: StageBars,
    any_aligner: bool = False,
) -> Merge:
    """Make one set of several, or go on with what an earlier call left.

    Args:
        paths: of the sets; the identities of the first keep their labels.
        out: the new set's directory.
        sameness: whether identities of one name are one.
        label_key: key of the label in the `.json` of samples without `.cls`, where a set does not say it.
        workers: processes.
        progress: is told of every shard.
        any_aligner: whether sets that were aligned by different detectors become one.

    Raises:
        UserError: sets that do not go together, or something else in `out`.
        WorkError: a set is damaged, or the disk failed.
    """
    sources = open_merge_sources(paths, out, label_key)
    aligner = common_aligner(
        {str(each.path): each.manifest.aligner for each in sources}, "--any-aligner", accept=any_aligner
    )
    joined = join_identities(sources, sameness)
    described = _described(sources, joined, sameness, label_key)
    files = JobFiles(out)
    with write_failures(f"set {out}", MAKE_ROOM):
        refuse_others(files, _plan_path(files), described, "merge")
        files.home.mkdir(parents=True, exist_ok=True)
        with only_job(files.lock, out):
            refuse_others(files, _plan_path(files), described, "merge")
            left_out = 0
            if not (out / MANIFEST_NAME).exists():
                _begin(files, described, joined)
                left_out = _move(files, sources, joined, workers, progress, aligner)
            _clear(files, len(sources))
    return Merge(load_manifest(out), sources, joined, left_out)


def _described(sources: Sequence[MergeSource], joined: Joined, sameness: Sameness, label_key: str) -> dict[str, Any]:
    """All that decides the bytes of the new set: not where the sets lie."""
    labels = hashlib.sha256()
    for start in range(0, len(joined.names), _HASHED_NAMES):
        labels.update(json.dumps(joined.names.slice(start, _HASHED_NAMES).to_pylist()).encode())
    for each in joined.labels:
        labels.update(each.tobytes())
    return {
        "version": PLAN_VERSION,
        "sets": {str(number): source.manifest.digest for number, source in enumerate(sources, start=1)},
        "identities": str(sameness),
        "label_key": label_key,
        "labels": labels.hexdigest(),
    }


def _plan_path(files: JobFiles) -> Path:
    return files.home / "merge.json"


def _begin(files: JobFiles, described: dict[str, Any], joined: Joined) -> None:
    """Write what the workers need, and remove what one that was killed was writing. The caller holds the lock."""
    shards = files.sealed(0).parent
    shards.mkdir(exist_ok=True)
    for directory in (files.out, files.home, shards):
        remove_temporaries(directory)
    write_json(_plan_path(files), described)
    for number, labels in enumerate(joined.labels):
        with written(labels_path(files, number)) as file:
            np.save(file, labels)


def _move(
    files: JobFiles,
    sources: Sequence[MergeSource],
    joined: Joined,
    workers: int,
    progress: StageBars,
    aligner: Aligner | None,
) -> int:
    """Move every shard, then write the set's own files; the number of samples that were left out."""
    origins = _origins(sources)
    task = MoveShard(files.out, origins)
    moved: dict[int, Moved] = {}
    progress.start("pictures", sum(origin.shard.samples for origin in origins))
    try:
        for unit, origin in enumerate(origins):
            if done := task.finished(unit):
                moved[unit] = done
                progress.add({"given": origin.shard.samples}, before=True)
        todo = [unit for unit in range(len(origins)) if unit not in moved]
        with closing(results(task, todo, workers, files.out)) as done_now:  # whatever happens, no worker goes on
            for unit, summary in done_now:
                moved[unit] = Moved(**summary)
                progress.add({"given": origins[unit].shard.samples})
    finally:
        progress.end()
    _tell_of_left_out(sources, origins, moved)
    counts = _counts(task, sources, origins, len(joined.names))
    shards = [moved[unit].shard for unit in sorted(moved) if moved[unit].samples]
    if not shards:
        raise WorkError(f"{files.out}: no sample of any set can be used; see `headcount data verify`")
    write_set(files.out, sources[0].manifest.image_size, joined.names, pa.array(counts), shards, aligner)
    return sum(each.left_out for each in moved.values())


def _origins(sources: Sequence[MergeSource]) -> list[Origin]:
    """The shards of all sets in their order, without those that are empty."""
    origins = []
    for number, source in enumerate(sources):
        prefix = source.key_prefix if number else ""
        stays = not number and source.manifest.label_key is None
        # A table that accounts for every sample says that every label is one of the set's.
        counted = not stays or source.counts is None or source.counts.sum() != source.manifest.samples
        origins += [
            Origin(source.path, number, shard, source.label_key, prefix, stays, counted)
            for shard in source.manifest.shards
            if shard.samples
        ]
    return origins


def _tell_of_left_out(sources: Sequence[MergeSource], origins: Sequence[Origin], moved: dict[int, Moved]) -> None:
    for number, source in enumerate(sources):
        found = [moved[unit] for unit, origin in enumerate(origins) if origin.number == number and moved[unit].left_out]
        if found:
            logger.warning(
                "%s: %d samples cannot be used and are left out, e.g. %s; `headcount data verify` lists them",
                source.path, sum(each.left_out for each in found), found[0].example,
            )  # fmt: skip


def _counts(task: MoveShard, sources: Sequence[MergeSource], origins: Sequence[Origin], classes: int) -> np.ndarray:
    """Pictures of each identity, int64 [classes]: as counted while moving, or as the first set's table has them."""
    counts = np.zeros(classes, dtype=np.int64)
    for unit, origin in enumerate(origins):
        if origin.counted:
            labels, numbers = task.counts(unit)
            counts[labels] += numbers
    first = sources[0]
    if first.counts is not None and not any(origin.counted for origin in origins if not origin.number):
        counts[: len(first.counts)] += first.counts
    return counts


def _clear(files: JobFiles, sources: int) -> None:
    """Remove what the job needed; the plan stays, so that the same command finds its set."""
    shutil.rmtree(files.sealed(0).parent, ignore_errors=True)
    for number in range(sources):
        labels_path(files, number).unlink(missing_ok=True)
