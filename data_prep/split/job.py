"""A split: from one set to one to train on, one that is held out, and a verification set of the latter.

    look through every shard ──► choose who is held out ──► part every shard ──► pairs, identities, manifests

Who is held out follows from the set and the options alone, so a start after a stop finds it again, and keeps the shards
whose marks are there.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from data_prep.engines.results import results
from data_prep.job.begun import refuse_others
from data_prep.job.progress import StageBars
from data_prep.merge.sources import MergeSource, open_source, refuse_sets
from data_prep.pairs import write_bin
from data_prep.shards import write_set
from data_prep.split.choice import HeldOut, place, unit_of
from data_prep.split.chosen import Chosen, choose, names_of
from data_prep.split.files import HELDOUT, TRAIN, SplitFiles
from data_prep.split.options import SplitOptions
from data_prep.split.pairs import Pairs, draw_pairs
from data_prep.split.part import Parted, PartShard
from data_prep.split.survey import Surveyed, SurveyShard
from dist_train.data.manifest import load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.errors import UserError, WorkError
from dist_train.runtime.files import first_fault, read_bounded
from dist_train.runtime.lock import only_job
from dist_train.runtime.written import MAKE_ROOM, remove_temporaries, write_failures, write_json

PLAN_VERSION = 1
_MOST_BYTES = 1 << 20  # of the file that says what came of a split
_OPEN_SHARDS = 64
_AT_ONCE = 10_000  # names


class Split(NamedTuple):
    """What came of a split.

    Attributes:
        train_identities: to train on.
        train_pictures: of them.
        heldout_identities: held out.
        gallery_pictures: of them, known.
        probe_pictures: of them, looked for.
        kept_back: identities with too few pictures to be held out, which are trained on.
        pairs: in the verification set.
        disjoint: whether no identity is in two of its folds.
        folded: whether each of its ten folds has as many pairs of one kind as of the other.
        left_out: samples that cannot be used.
        left_out_example: one of them, with the reason; empty for none.
        empty: identities of the set without a picture.
    """

    train_identities: int
    train_pictures: int
    heldout_identities: int
    gallery_pictures: int
    probe_pictures: int
    kept_back: int
    pairs: int
    disjoint: bool
    folded: bool
    left_out: int
    left_out_example: str
    empty: int


_SPLIT = TypeAdapter(Split)


def split_set(path: Path, out: Path, options: SplitOptions, workers: int, progress: StageBars) -> Split:
    """Part a set by identities, or go on with what an earlier call left.

    Args:
        path: of the set.
        out: directory for the parts.
        options: what decides the split.
        workers: processes.
        progress: is told of every shard.

    Raises:
        UserError: something else in `out`, or a set that has roles, lacks times, or has not so many identities.
        WorkError: the set is damaged, or the disk failed.
    """
    refuse_sets([path], out)
    source = open_source(path.resolve(), path.resolve().name, options.label_key)
    described = _described(source, options)
    files = SplitFiles(out)
    with write_failures(f"split {out}", MAKE_ROOM):
        refuse_others(files.job, files.plan, described, "split")
        files.job.home.mkdir(parents=True, exist_ok=True)
        with only_job(files.job.lock, out):
            refuse_others(files.job, files.plan, described, "split")
            if not files.done.exists():
                _begin(files, described)
                _end(files, _work(files, source, options, workers, progress))
            _clear(files)
    try:
        return _SPLIT.validate_json(read_bounded(files.done, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{files.done}: {first_fault(error)}; use another OUT, or remove {out}") from error


def _described(source: MergeSource, options: SplitOptions) -> dict[str, Any]:
    """All that decides the bytes of the parts: not where the set lies."""
    names = hashlib.sha256()
    for start in range(0, len(source.names), _AT_ONCE):
        names.update(json.dumps(source.names.slice(start, _AT_ONCE).to_pylist()).encode())
    given = options._replace(label_key=source.label_key).described()
    return {"version": PLAN_VERSION, "set": source.manifest.digest, "names": names.hexdigest(), **given}


def _begin(files: SplitFiles, described: dict[str, Any]) -> None:
    """Make room for the work, and remove what one that was killed was writing. The caller holds the lock."""
    parts = [files.part(name) for name in (TRAIN, HELDOUT)]
    for name, part in zip((TRAIN, HELDOUT), parts, strict=True):
        if (complete := files.complete_part(name)).exists():  # the other had not got its name yet
            shutil.rmtree(part, ignore_errors=True)
            complete.rename(part)
    for folder in (*parts, files.out, files.job.home, files.surveys, files.parted(0).parent):
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
    write_json(files.plan, described)


def _work(files: SplitFiles, source: MergeSource, options: SplitOptions, workers: int, progress: StageBars) -> Split:
    """Write both parts, complete but for their names, and the verification set."""
    manifest = source.manifest
    given = (files, source.path, manifest.shards, source.label_key)
    survey = SurveyShard(*given, manifest.num_classes, options.time_field, options.seed)
    surveyed = [Surveyed(**body) for body in _every(survey, source, workers, progress, files)]
    _refuse_unfit(source, surveyed, options)
    chosen = choose(files, source, options)
    parted = [Parted(**body) for body in _every(PartShard(*given), source, workers, progress, files)]
    for name, own in ((TRAIN, chosen.is_train), (HELDOUT, chosen.is_held)):
        shards = [shard for each in parted if (shard := getattr(each, name)).samples]
        counts = pa.array(chosen.counts[own])
        write_set(files.part(name), manifest.image_size, names_of(source, own), counts, shards, manifest.aligner)
    pairs = draw_pairs(chosen.counts[chosen.heldout], chosen.hashes, options.pairs, options.seed)
    _write_pairs(files, chosen.samples, parted, pairs)
    return _told(chosen, surveyed, pairs, options.gallery)


def _every(
    task: SurveyShard | PartShard, source: MergeSource, workers: int, progress: StageBars, files: SplitFiles
) -> list[dict[str, Any]]:
    """Summaries of all shards in their order, of those that were done before too."""
    shards = source.manifest.shards
    done: dict[int, dict[str, Any]] = {}
    progress.start("pictures", source.manifest.samples)
    try:
        for unit, shard in enumerate(shards):
            if before := task.finished(unit):
                done[unit] = before._asdict()
                progress.add({"given": shard.samples}, before=True)
        todo = [unit for unit in range(len(shards)) if unit not in done]
        with closing(results(task, todo, workers, files.out)) as now:  # whatever happens, no worker goes on
            for unit, summary in now:
                done[unit] = summary
                progress.add({"given": shards[unit].samples})
    finally:
        progress.end()
    return [done[unit] for unit in sorted(done)]


def _refuse_unfit(source: MergeSource, surveyed: Sequence[Surveyed], options: SplitOptions) -> None:
    """Refuse a set that is one part of another already, or whose pictures cannot be ordered by time."""
    usable = sum(each.samples for each in surveyed)
    if not usable:
        raise WorkError(f"{source.path}: no sample can be used; see `headcount data verify`")
    if found := [each for each in surveyed if each.roles]:
        count = sum(each.roles for each in found)
        raise UserError(
            f"{source.path}: {count:,} of {usable:,} samples have a role already, the first: {found[0].role_example}; "
            "it is a gallery and its probes, and no set to part: measure on it with `headcount eval --sets`"
        )
    field = options.time_field
    if found := [each for each in surveyed if each.timeless]:
        count = sum(each.timeless for each in found)
        raise UserError(
            f"--by-time {field}: {count:,} of {usable:,} samples of {source.path} have no time in their .json, the "
            f"first: {found[0].timeless_example}; expected a number, or a date as 2024-05-31 or 2024-05-31T12:00:00"
        )
    if any(each.dates for each in surveyed) and any(each.numbers for each in surveyed):
        raise UserError(
            f"--by-time {field}: some samples of {source.path} have a date, others a number, which cannot be "
            "compared; write all of one kind"
        )


def _write_pairs(files: SplitFiles, samples: HeldOut, parted: Sequence[Parted], pairs: Pairs) -> None:
    """Write the verification set of pictures that are held out, as their set has them."""
    ordered = np.sort(samples.places)
    units = unit_of(samples.places)
    # The held-out samples of a shard keep their order; shards without any are not in the set.
    numbers = np.searchsorted(ordered, samples.places) - np.searchsorted(ordered, place(units, 0))
    shards = np.cumsum([each.heldout.samples > 0 for each in parted]) - 1
    folder = files.part(HELDOUT)
    reader = SampleReader([ImageSet(str(folder), load_manifest(folder))], "label", _OPEN_SHARDS)

    def pictures() -> Iterator[bytes]:
        for sample in np.stack([pairs.left, pairs.right], axis=1).reshape(-1).tolist():
            try:
                yield reader.read(int(shards[units[sample]]), int(numbers[sample])).image.tobytes()
            except BadSampleError as error:
                raise WorkError(f"{folder}: {error}; it was changed meanwhile: run the same command again") from error

    try:
        write_bin(files.pairs, pictures(), pairs.same.tolist())
    finally:
        reader.close()


def _told(chosen: Chosen, surveyed: Sequence[Surveyed], pairs: Pairs, gallery: int) -> Split:
    counts, known = chosen.counts, int(chosen.samples.in_gallery.sum())
    return Split(
        train_identities=int(chosen.is_train.sum()),
        train_pictures=int(counts[chosen.is_train].sum()),
        heldout_identities=len(chosen.heldout),
        gallery_pictures=known,
        probe_pictures=len(chosen.samples.places) - known,
        kept_back=int((chosen.is_train & (counts <= gallery)).sum()),
        pairs=len(pairs.same),
        disjoint=pairs.disjoint,
        folded=pairs.folded,
        left_out=sum(each.left_out for each in surveyed),
        left_out_example=next((each.left_out_example for each in surveyed if each.left_out), ""),
        empty=int((counts == 0).sum()),
    )


def _end(files: SplitFiles, split: Split) -> None:
    """Give both parts their names, and say that all is complete."""
    for name in (HELDOUT, TRAIN):
        files.part(name).rename(files.complete_part(name))
    write_json(files.done, split._asdict())


def _clear(files: SplitFiles) -> None:
    """Remove what the work needed; the plan stays, so that the same command finds its parts."""
    for folder in (files.surveys, files.parted(0).parent):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (files.labels, files.heldout, files.gallery):
        path.unlink(missing_ok=True)
