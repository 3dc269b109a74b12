"""Labels of a job's inputs: the identities that are kept, their numbers, and the files of the set beside its shards.

Labels follow from the units' statistics alone, whatever the order in which units were made.

- Of photos with the same bytes the first in the source's list is kept.
- Then identities with fewer than `min_images` pictures are dropped.
- Labels number the other identities by sorted name; names that are whole numbers come first, by value. With
  `labels_from`, all names of the older set keep their labels, with or without pictures, and new names follow.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.job.plan import JobPlan
from data_prep.job.unit_files import MADE, SET_ASIDE, read_mark, read_statistics
from data_prep.job.work import LEFT_OUT, STATISTICS, label_digest, write_table
from data_prep.shards import write_identities
from dist_train.data.identities import read_identities
from dist_train.data.manifest import MANIFEST_NAME, Manifest, Shard
from dist_train.data.reject import REJECTS_NAME
from dist_train.errors import WorkError
from dist_train.runtime.text import shown_name
from dist_train.runtime.written import written

logger = logging.getLogger(__name__)

REJECTS = pa.schema(
    [
        pa.field("position", pa.int64()),
        pa.field("source", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
_LABELS = pa.schema([pa.field("label", pa.int64()), pa.field("first", pa.int64())])
_NO_FIRST = -1


class Decision(NamedTuple):
    """The decision about a job's inputs: identities, labels and counts of pictures.

    Attributes:
        names: name of each label.
        counts: pictures of each label, [labels].
        few: pictures of each dropped identity by name.
        digests: digest of the labels of each unit.
    """

    names: list[str]
    counts: np.ndarray
    few: dict[str, int]
    digests: list[str]


class _Made(NamedTuple):
    """Inputs with pictures, from all units, as columns [inputs]."""

    names: list[str]
    unit: np.ndarray
    row: np.ndarray
    position: np.ndarray
    code: np.ndarray  # index into `names`
    pictures: np.ndarray
    digest: np.ndarray  # [inputs, 2] uint64


def decide(plan: JobPlan) -> Decision:
    """Label every input, or leave it out; write the labels to `labels.arrow`.

    Raises:
        WorkError: no input is left.
    """
    made = _gather(plan)
    first = _first_copies(made)
    counted = np.where(first == _NO_FIRST, made.pictures, 0)
    counts = np.bincount(made.code, weights=counted, minlength=len(made.names)).astype(np.int64)
    enough = counts >= plan.options.min_images
    kept = {name: int(count) for name, count, stays in zip(made.names, counts, enough, strict=True) if stays}
    names = number_names(kept, _old_names(plan))
    label_of = {name: label for label, name in enumerate(names)}
    by_code = np.array([label_of[name] if name in kept else LEFT_OUT for name in made.names], dtype=np.int64)
    label = np.where(first == _NO_FIRST, by_code[made.code] if len(made.code) else LEFT_OUT, LEFT_OUT)
    if not (label != LEFT_OUT).any():
        raise WorkError(
            f"{plan.layout.out}: no picture is left of {plan.rows_total} inputs: {_reasons(plan, counts[~enough])}"
        )
    digests = []
    bounds = np.searchsorted(made.unit, np.arange(plan.units + 1))
    with written(plan.layout.labels) as sink, pa.ipc.new_file(sink, _LABELS) as writer:
        for unit in range(plan.units):
            part = slice(bounds[unit], bounds[unit + 1])
            rows = plan.batch(unit).num_rows if plan.layout.done(unit).exists() else 0
            columns = np.full((2, rows), LEFT_OUT, dtype=np.int64)
            columns[0, made.row[part]] = label[part]
            columns[1, made.row[part]] = first[part]
            batch = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=_LABELS)
            writer.write_batch(batch)
            digests.append(label_digest(batch.column(0)))
    few = {name: int(count) for name, count, stays in zip(made.names, counts, enough, strict=True) if not stays}
    return Decision(names, np.array([kept.get(name, 0) for name in names], dtype=np.int64), few, digests)


def number_names(kept: Sequence[str] | dict[str, int], old: Sequence[str]) -> list[str]:
    """Names in the order of their labels: first `old` in its order, then the new names of `kept`, sorted."""
    return [*old, *sorted(set(kept) - set(old), key=sort_key)]


def sort_key(name: str) -> tuple[int, int, str, str]:
    """Sort key of a name: whole numbers by value, before all other names."""
    digits = name.lstrip("0")  # digits are compared as text: Python refuses to parse very long numbers
    return (0, len(digits), digits, name) if name.isascii() and name.isdigit() else (1, 0, "", name)


def write_set(plan: JobPlan, decision: Decision, shards: Sequence[dict[str, Any]]) -> Manifest:
    """Write rejects, identities and last the manifest, which makes it a set.

    Args:
        plan: the job's plan.
        decision: the result of `decide`.
        shards: results of `SealUnit` by unit, for every unit that was not set aside.
    """
    write_table(_rejects(plan, decision.few), plan.layout.out / REJECTS_NAME)
    write_identities(plan.layout.out, decision.names, decision.counts.tolist())
    entries = [Shard(s["name"], s["samples"], s["bytes"], s["sha256"]) for s in shards if s["samples"]]
    transform = plan.options.transform
    manifest = Manifest(transform.image_size, len(decision.names), tuple(entries), aligner=transform.aligner())
    manifest.save(plan.layout.out)
    return manifest


def manifest_exists(plan: JobPlan) -> bool:
    """Whether the job is complete."""
    return (plan.layout.out / MANIFEST_NAME).exists()


def _gather(plan: JobPlan) -> _Made:
    codes: dict[str, int] = {}
    columns: list[tuple[np.ndarray, ...]] = []
    wanted = ["position", "identity", "digest", "reason", "sizes"]
    for unit in range(plan.units):
        if not plan.layout.done(unit).exists():
            continue
        table = read_statistics(plan.layout.statistics(unit), wanted, STATISTICS)
        row = np.flatnonzero(table["reason"].is_null().to_numpy())
        table = table.select(["position", "identity", "digest", "sizes"]).take(pa.array(row)).combine_chunks()
        names = table["identity"].combine_chunks().dictionary_encode()
        code_of = np.array(
            [codes.setdefault(name, len(codes)) for name in names.dictionary.to_pylist()], dtype=np.int64
        )
        digest = b"".join(table["digest"].to_pylist())
        columns.append(
            (
                np.full(len(row), unit),
                row,
                table["position"].to_numpy(),
                code_of[names.indices.to_numpy()].astype(np.int32),
                pa.compute.list_value_length(table["sizes"]).to_numpy(),
                np.frombuffer(digest, dtype=np.uint64).reshape(-1, 2),
            )
        )
    if not columns:
        raise WorkError(f"{plan.layout.out}: no unit was made; see the .failed files in {plan.layout.home / 'units'}")
    merged = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    return _Made(list(codes), *merged)


def _first_copies(made: _Made) -> np.ndarray:
    """Position of the first input in the list with the same bytes, for each later copy; `_NO_FIRST` for others."""
    order = np.lexsort((made.position, made.digest[:, 1], made.digest[:, 0]))
    same = np.zeros(len(order), dtype=bool)
    same[1:] = (made.digest[order[1:]] == made.digest[order[:-1]]).all(axis=1)
    leaders = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    first = np.full(len(order), _NO_FIRST, dtype=np.int64)
    first[order[same]] = made.position[order[leaders[same]]]
    return first


def _old_names(plan: JobPlan) -> list[str]:
    if not plan.options.labels_from:
        return []
    names: list[str] = read_identities(plan.layout.old_identities, "name").sort_by("label")["name"].to_pylist()
    return names


def _rejects(plan: JobPlan, few: dict[str, int]) -> pa.Table:
    labels = pa.ipc.open_file(pa.memory_map(str(plan.layout.labels)))
    firsts = [labels.get_batch(unit).column("first").to_numpy() for unit in range(plan.units)]
    wanted = np.unique(np.concatenate(firsts))
    sources = _sources_at(plan, wanted[wanted != _NO_FIRST])
    rejected: dict[str, list[Any]] = {name: [] for name in REJECTS.names}
    for unit in range(plan.units):
        for values in _unit_rejects(plan, unit, labels.get_batch(unit), few, sources):
            for column, value in zip(rejected.values(), values, strict=True):
                column.append(value)
    return pa.table(rejected, schema=REJECTS).sort_by("position")


def _unit_rejects(
    plan: JobPlan, unit: int, labels: pa.RecordBatch, few: dict[str, int], sources: dict[int, str]
) -> Iterator[tuple[int, str, str | None, str, str]]:
    planned = plan.batch(unit)
    text = plan.options.source.text
    if not plan.layout.done(unit).exists():
        error = read_mark(plan.layout.set_aside(unit), SET_ASIDE)["error"]
        for row in plan.rows(unit):
            yield row.position, text(row.location), row.identity, "unit failed", error
        return
    left_out = np.flatnonzero(labels.column("label").to_numpy() == LEFT_OUT)
    if not len(left_out):
        return
    taken = pa.array(left_out)
    columns = ["position", "identity", "reason", "detail"]
    found = read_statistics(plan.layout.statistics(unit), columns, STATISTICS).take(taken).to_pylist()
    locations = planned.column("location").take(taken).to_pylist()
    firsts = labels.column("first").take(taken).to_pylist()
    for row, location, first in zip(found, locations, firsts, strict=True):
        identity, reason, detail = row["identity"], row["reason"], row["detail"]
        if reason is None and first != _NO_FIRST:
            reason, detail = "duplicate", f"same bytes as {sources[first]}"
        elif reason is None:
            least = plan.options.min_images
            reason, detail = "few pictures", f"its identity has {few[identity]}, the least is {least}"
        yield row["position"], text(location), identity, reason, detail


def _sources_at(plan: JobPlan, positions: np.ndarray) -> dict[int, str]:
    """Sources of the inputs at `positions`, as text."""
    found: dict[int, str] = {}
    for unit in range(plan.units if len(positions) else 0):
        batch = plan.batch(unit)
        here = np.flatnonzero(np.isin(batch.column("position").to_numpy(), positions))
        if len(here):
            part = batch.take(pa.array(here))
            places = zip(part.column("position").to_pylist(), part.column("location").to_pylist(), strict=True)
            found |= {position: plan.options.source.text(location) for position, location in places}
    return found


def _reasons(plan: JobPlan, few: np.ndarray) -> str:
    """Counts of rejects by reason, the most frequent first; `few`: pictures of dropped identities, [names]."""
    reasons: Counter[str] = Counter()
    for unit in range(plan.units):
        if plan.layout.done(unit).exists():
            reasons.update(read_mark(plan.layout.done(unit), MADE)["reasons"])
        else:
            reasons["unit failed"] += plan.batch(unit).num_rows
    told = [f"{count} {reason}" for reason, count in reasons.most_common()]
    if few.any():
        told.append(f"{few.sum()} of identities with fewer than {plan.options.min_images} (min_images)")
    return f"{', '.join(told)}{_example(plan)}; details in the .parquet files in {plan.layout.home / 'units'}"


def _example(plan: JobPlan) -> str:
    """The first rejected input with its reason, for messages."""
    for unit in range(plan.units):
        if not plan.layout.done(unit).exists():
            continue
        table = read_statistics(plan.layout.statistics(unit), ["reason", "detail"], STATISTICS)
        rows = np.flatnonzero(table["reason"].is_valid().to_numpy())
        if len(rows):
            at = int(rows[0])
            source = plan.options.source.text(plan.batch(unit).column("location")[at].as_py())
            return f", e.g. {shown_name(source)}: {table['reason'][at]}: {shown_name(str(table['detail'][at]))}"
    return ""
