"""The two tasks of a job: to make a unit's pictures, and later to seal them as a shard.

Labels follow from all units: which identities have enough pictures, which pictures are duplicates. So a unit first
makes its pictures and statistics (`MakeUnit`), and becomes a shard when labels are known (`SealUnit`). Both tasks
commit by rename and write a small JSON file, the mark of completion, last. A task that is done twice gives the same
bytes.
"""

import hashlib
import json
import mmap
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.job.plan import UNITS, JobFiles, JobOptions, JobPlan
from data_prep.job.unit_files import read_statistics
from data_prep.shards import ShardWriter
from data_prep.sources.base import MAX_FILE_BYTES, Raw, Reader, Row
from data_prep.transforms import Crop, Made, NamedProcess
from dist_train.data.reject import STORAGE_REASONS, Reject
from dist_train.errors import WorkError
from dist_train.runtime.written import write_json, written

DIGEST_BYTES = 16
LEFT_OUT = -1  # stands for a label where the input is left out
_HELD_BYTES = MAX_FILE_BYTES  # of photos that are handed to a transform at once; usual ones stay below it

STATISTICS = pa.schema(
    [
        pa.field("position", pa.int64()),  # index in the source's list
        pa.field("identity", pa.string()),  # null: unknown
        pa.field("digest", pa.binary(DIGEST_BYTES)),  # of the photo's bytes; null: not read
        pa.field("reason", pa.string()),  # reason of a reject; null: pictures were made
        pa.field("detail", pa.string()),
        # One entry per picture:
        pa.field("sizes", pa.list_(pa.int32())),  # bytes
        pa.field("extensions", pa.list_(pa.string())),
        pa.field("records", pa.list_(pa.string())),  # JSON or null
        pa.field("face_px", pa.list_(pa.float32())),
        pa.field("score", pa.list_(pa.float32())),
        pa.field("lead", pa.list_(pa.float32())),  # lead of the chosen face over the second best; null: no choice
    ]
)


class MakeUnit:
    """The task that reads and transforms the inputs of a unit, and writes pictures, statistics and the mark.

    Args:
        out: the set's directory.
        options: of the job; default: the options in its plan.
        units: name of the directory for the unit's files, in the job's own.
    """

    def __init__(self, out: Path, options: JobOptions | None = None, units: str = UNITS) -> None:
        self.out = out
        self._options = options
        self.units = units
        self._opened: tuple[JobPlan, Reader, NamedProcess] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def __call__(self, unit: int) -> dict[str, Any]:
        """Make `unit`; the content of its mark.

        Raises:
            WorkError: the source's storage or the disk failed.
        """
        if self._opened is None:
            plan = JobPlan(JobFiles(self.out, self.units), self._options)
            self._opened = plan, plan.options.source.reader(), plan.options.transform.open_in(plan.layout.home)
        plan, reader, process = self._opened
        started = time.perf_counter()
        rows = plan.rows(unit)
        statistics: dict[str, list[Any]] = {name: [] for name in STATISTICS.names}
        with written(plan.layout.part(unit)) as file:
            for row, raw, made in _outcomes(rows, reader, process, plan.options):
                if not isinstance(made, Reject):
                    file.writelines(crop.data for crop in made)
                _note(statistics, plan, row, raw, made)
            counts = counts_of(statistics["reason"], statistics["sizes"])
            if not counts["kept"] and counts["reasons"].keys() <= STORAGE_REASONS:
                raise WorkError(f"none of {len(rows)} inputs can be read, the first: {statistics['detail'][0]}")
        write_table(pa.table(statistics, schema=STATISTICS), plan.layout.statistics(unit))
        summary = {
            **counts,
            "seconds": round(time.perf_counter() - started, 3),
            "ended": round(time.time(), 3),  # seconds since 1970, for the speed in the job's report
        }
        write_json(plan.layout.done(unit), summary)
        return summary


class SealUnit:
    """The task that writes the shard of a unit whose labels are known."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._opened: tuple[JobFiles, pa.RecordBatchFileReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def __call__(self, unit: int) -> dict[str, Any]:
        """Seal `unit`; return the manifest's entry of its shard, with the digest of its labels.

        Raises:
            WorkError: the disk failed.
        """
        if self._opened is None:
            layout = JobFiles(self.out)
            self._opened = layout, pa.ipc.open_file(pa.memory_map(str(layout.labels)))
        layout, file = self._opened
        labels = file.get_batch(unit).column("label")
        body = {"name": layout.shard(unit).name, "samples": 0, "bytes": 0, "sha256": "", "labels": label_digest(labels)}
        if any(label != LEFT_OUT for label in labels.to_pylist()):
            with ShardWriter(layout.shard(unit)) as writer:
                for key, label, crop in _labelled(layout, unit, labels.to_pylist()):
                    writer.write(key, crop.data, label, crop.record, crop.extension)
            shard = writer.shard
            body |= {"samples": shard.samples, "bytes": shard.bytes, "sha256": shard.sha256}
        write_json(layout.sealed(unit), body)
        return body


def counts_of(reasons: Sequence[str | None], sizes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Counts of a unit's inputs and pictures for its mark, from two columns of its statistics."""
    rejected = Counter(reason for reason in reasons if reason is not None)
    return {
        "given": len(reasons),
        "kept": len(reasons) - rejected.total(),
        "pictures": sum(map(len, sizes)),
        "reasons": dict(sorted(rejected.items())),
    }


def label_digest(labels: pa.Array) -> str:
    """Digest of a unit's labels; a shard with another digest is out of date."""
    return hashlib.sha256(labels.to_numpy(zero_copy_only=False).tobytes()).hexdigest()


def sample_key(position: int, number: int, pictures: int) -> str:
    """Key of a picture in its shard: by its photo's position, and its number where the photo gave several."""
    return f"{position:09d}" if pictures == 1 else f"{position:09d}-{number:02d}"


def write_table(table: pa.Table, path: Path) -> None:
    """Write a parquet file that appears by rename."""
    with written(path) as file:
        pq.write_table(table, file, compression="zstd")


def _outcomes(
    rows: list[Row], reader: Reader, process: NamedProcess, options: JobOptions
) -> Iterator[tuple[Row, Raw | Reject, Made]]:
    for group in _read(rows, reader, options.transform.batch):
        there = [(raw.data, options.source.text(row.location)) for row, raw in group if isinstance(raw, Raw)]
        made = iter(process([data for data, _ in there], [name for _, name in there]))
        for row, raw in group:
            yield row, raw, (next(made) if isinstance(raw, Raw) else raw)


def _read(rows: list[Row], reader: Reader, batch: int) -> Iterator[list[tuple[Row, Raw | Reject]]]:
    """Rows with what is read of them, in groups of `batch`, or of fewer that are large.

    Where a group ends follows from the photos alone, so that every worker makes the same bytes of them.

    Raises:
        WorkError: the source's storage failed, or is lost.
    """
    group: list[tuple[Row, Raw | Reject]] = []
    at = held = 0
    while at < len(rows):
        part = rows[at : at + min(reader.at_once, batch - len(group))]
        try:
            raws = reader.read_named(part)
        except OSError as error:
            raise WorkError(f"the source's storage fails: {error}") from error
        _refuse_lost(part, raws, reader)
        group += zip(part, raws, strict=True)
        at += len(part)
        held += sum(len(raw.data) for raw in raws if isinstance(raw, Raw))
        if len(group) == batch or held >= _HELD_BYTES or at == len(rows):
            yield group
            group, held = [], 0


def _refuse_lost(rows: list[Row], raws: list[Raw | Reject], reader: Reader) -> None:
    """Tell a storage that is lost from photos that are: of a mount that went away no folder is left, or an empty one.

    Raises:
        WorkError: a row cannot be read, and nothing is left in the folder below which it was listed.
    """
    for row, raw in zip(rows, raws, strict=True):
        root = reader.root(row) if isinstance(raw, Reject) and raw.reason in STORAGE_REASONS else None
        if root is not None and not _holds_anything(root):
            raise WorkError(f"the source's storage is lost: nothing is left in {os.fsdecode(root)}")


def _holds_anything(folder: bytes) -> bool:
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return False


def _note(statistics: dict[str, list[Any]], plan: JobPlan, row: Row, raw: Raw | Reject, made: Made) -> None:
    crops = [] if isinstance(made, Reject) else made
    values = (
        row.position,
        raw.identity if isinstance(raw, Raw) else row.identity,
        hashlib.blake2b(raw.data, digest_size=DIGEST_BYTES).digest() if isinstance(raw, Raw) else None,
        made.reason if isinstance(made, Reject) else None,
        made.detail if isinstance(made, Reject) else None,
        [len(crop.data) for crop in crops],
        [crop.extension for crop in crops],
        [_record(plan, row, crop) for crop in crops],
        [crop.face_px for crop in crops],
        [crop.score for crop in crops],
        [crop.lead for crop in crops],
    )
    for column, value in zip(statistics.values(), values, strict=True):
        column.append(value)


def _record(plan: JobPlan, row: Row, crop: Crop) -> str | None:
    if crop.record is None:
        return None
    return json.dumps({"source": plan.options.source.text(row.location), **crop.record})


def _labelled(layout: JobFiles, unit: int, labels: list[int]) -> Iterator[tuple[str, int, Crop]]:
    """Key, label and picture of every sample in a unit, without inputs that are left out."""
    columns = ["position", "sizes", "extensions", "records"]
    table = read_statistics(layout.statistics(unit), columns, STATISTICS)
    offset = 0
    path = next((path for path in (layout.part(unit), layout.restored(unit)) if path.exists()), layout.part(unit))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as part:
        for label, *row in zip(labels, *(table[name].to_pylist() for name in columns), strict=True):
            position, sizes, extensions, records = row
            for number, size in enumerate(sizes):
                if label != LEFT_OUT:
                    key = sample_key(position, number, len(sizes))
                    record = json.loads(records[number]) if records[number] else None
                    yield key, label, Crop(part[offset : offset + size], extensions[number], record)
                offset += size
