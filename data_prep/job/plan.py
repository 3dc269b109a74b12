"""The plan of a job: its options and its units of work, made once and stored.

A unit is a fixed list of inputs. Every source lists an identity's pictures side by side; training shuffles within
windows of shards, so they must be spread over many shards. The plan permutes the source's list by a seed. Runs of `RUN`
neighbours stay together, which divides the seeks in a large `.rec` or tar by `RUN`.

The list is sorted into units through files, in memory that does not grow with the list: 10 million rows take the
memory of half a million.
"""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, TypeAdapter

from data_prep.sources.base import LISTING, Row, Source
from data_prep.sources.name_list import NameList, select
from data_prep.transforms import Transform
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.errors import UserError
from dist_train.runtime.files import first_fault, read_bounded
from dist_train.runtime.text import shown
from dist_train.runtime.written import write_json, written
from dist_train.section import Section

PLAN_VERSION = 1
UNITS, AGAIN = "units", "again"
"""Directories of the files of units, and of units that are done again, in a job's own."""
# The sources and transforms that a plan may name, and the modules of their classes. A name stays when its class moves,
# so that older jobs can continue. Any other name must be a class that the program has loaded already: a file never
# decides what is imported.
COMPONENTS = {
    "data_prep.sources:FolderSource": "data_prep.sources.folder:FolderSource",
    "data_prep.archives:RecSource": "data_prep.sources.archives:RecSource",
    "data_prep.archives:TarSource": "data_prep.sources.archives:TarSource",
    "data_prep.tables:TableSource": "data_prep.sources.tables:TableSource",
    "data_prep.transforms:Keep": "data_prep.transforms:Keep",
    "data_prep.align_transform:Align": "data_prep.align_transform:Align",
    "data_prep.landmarks.transform:Placed": "data_prep.landmarks.transform:Placed",
}
_NAMES = {place: name for name, place in COMPONENTS.items()}
RUN = 8
_LARGEST_UNIT = 10_000
_SMALLEST_UNIT = 256
_MAX_PLAN_BYTES = 1 << 20
_MOST_ROWS = 1 << 40
_UNITS_WANTED = 64
_BUCKET_ROWS = 1 << 19
_MOST_BUCKETS = 256  # each bucket is an open file
_UNITS = LISTING.insert(0, pa.field("position", pa.int64(), nullable=False))
_SLOTS = _UNITS.insert(0, pa.field("slot", pa.int64(), nullable=False))


class JobOptions(Section):
    """Options of a job. Every option decides the result, none says how the work is spread."""

    source: Source
    transform: Transform
    unit_rows: int | None = Field(None, ge=1, description="inputs per unit; default: from their number")
    seed: int = Field(0, ge=0, description="of the permutation of the inputs")
    min_images: int = Field(1, ge=1, description="identities with fewer pictures are dropped")
    labels_from: Path | None = Field(None, description="a set whose identities keep their labels")
    identities: NameList | None = Field(None, description="only photos of these are inputs; default: all")

    def described(self) -> dict[str, Any]:
        """The options as JSON values, with the names of the classes of source and transform."""
        return {
            **self.model_dump(mode="json", exclude={"source", "transform"}),
            "source": _describe(self.source),
            "transform": _describe(self.transform),
        }


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Paths of a job's files: the set lies in `out`, the job's own files in `out/.prep`.

    Attributes:
        out: directory of the set.
        units_name: of the directory with the files of units, which those that are done again have for themselves.
    """

    out: Path
    units_name: str = UNITS

    @property
    def home(self) -> Path:
        """Directory of the job's own files."""
        return self.out / ".prep"

    @property
    def lock(self) -> Path:
        """Lock of the job that works on the output."""
        return self.home / "lock"

    @property
    def plan(self) -> Path:
        """Options and counts; its presence means that the plan is complete."""
        return self.home / "plan.json"

    @property
    def rows(self) -> Path:
        """Rows of all units: an Arrow file with one batch per unit."""
        return self.home / "plan.arrow"

    @property
    def old_identities(self) -> Path:
        """`identities.parquet` of the set in `labels_from`, as it was at planning."""
        return self.home / "labels_from.parquet"

    @property
    def labels(self) -> Path:
        """Label of every input: an Arrow file with one batch per unit."""
        return self.home / "labels.arrow"

    @property
    def arrays(self) -> Path:
        """Queues and logs of Slurm arrays."""
        return self.home / "arrays"

    @property
    def units(self) -> Path:
        """Directory of the files of units."""
        return self.home / self.units_name

    def part(self, unit: int) -> Path:
        """Pictures of a unit, before labels are known."""
        return self.units / f"{unit:06d}.tar"

    def restored(self, unit: int) -> Path:
        """The same, taken back out of its shard for some labels; a temporary, of which the next start knows nothing."""
        return self.units / f".{unit:06d}.tar.restored.tmp"

    def statistics(self, unit: int) -> Path:
        """Statistics of a unit: the outcome of each input."""
        return self.units / f"{unit:06d}.parquet"

    def done(self, unit: int) -> Path:
        """Summary of a unit; its presence means that the unit is complete."""
        return self.units / f"{unit:06d}.json"

    def set_aside(self, unit: int) -> Path:
        """Error of a unit that was given up."""
        return self.units / f"{unit:06d}.failed"

    def shard(self, unit: int) -> Path:
        """The unit's shard of the set."""
        return self.out / f"x-{unit:06d}.tar"

    def sealed(self, unit: int) -> Path:
        """Name, size and digest of the unit's shard; its presence means that the shard is complete."""
        return self.home / "shards" / f"{unit:06d}.json"


@dataclass(frozen=True, slots=True)
class _Stored:
    """The JSON object in a plan's file."""

    version: Annotated[int, Field(ge=PLAN_VERSION, le=PLAN_VERSION)]
    options: dict[str, Any]
    rows: Annotated[int, Field(ge=1, le=_MOST_ROWS)]
    units: Annotated[int, Field(ge=1, le=_MOST_ROWS)]


_STORED = TypeAdapter(_Stored)


class JobPlan:
    """A stored plan."""

    def __init__(self, layout: JobFiles, options: JobOptions | None = None) -> None:
        """Open the plan in `layout`.

        Args:
            layout: files of the job.
            options: of the job; default: the options in the plan's file.

        Raises:
            UserError: there is no plan, or it is damaged or of another version.
        """
        self.layout = layout
        try:
            body = _STORED.validate_json(read_bounded(layout.plan, _MAX_PLAN_BYTES), strict=True)
        except FileNotFoundError as error:
            raise UserError(f"{layout.out}: no job was planned there; start it with `headcount prep align`") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{layout.plan}: {first_fault(error)}; use another OUT") from error
        self.described: dict[str, Any] = body.options
        self.rows_total, self.units = body.rows, body.units
        self.options = options or self._restored()
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(layout.rows)))
            batches = self._file.num_record_batches
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{layout.rows}: {error}; use another OUT") from error
        if batches != self.units:
            raise UserError(f"{layout.rows}: {batches} units, {layout.plan.name} says {self.units}; use another OUT")

    def _restored(self) -> JobOptions:
        try:
            return restore_options(self.described)
        except (ValueError, KeyError, TypeError) as error:
            what = first_fault(error) if isinstance(error, ValueError) else repr(error)
            raise UserError(f"{self.layout.plan}: options: {what}; use another OUT") from error

    def batch(self, unit: int) -> pa.RecordBatch:
        """Rows of a unit as columns: position, location, offset, size, identity.

        Raises:
            UserError: the file is damaged.
        """
        try:
            batch = self._file.get_batch(unit)
            batch.validate(full=True)  # Arrow does not check the offsets in a file
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.layout.rows}: unit {unit}: {error}; use another OUT") from error
        return batch

    def rows(self, unit: int) -> list[Row]:
        """Rows of a unit."""
        return [Row(*values) for values in zip(*(column.to_pylist() for column in self.batch(unit)), strict=True)]


def make_plan(layout: JobFiles, options: JobOptions) -> JobPlan:
    """List the source, deal its rows into units, store both.

    Raises:
        UserError: the source has another format than its name says, or is empty.
    """
    layout.home.mkdir(parents=True, exist_ok=True)
    layout.units.mkdir(exist_ok=True)
    (layout.home / "shards").mkdir(exist_ok=True)
    if options.labels_from:
        _copy_identities(options.labels_from, layout.old_identities)
    scratch = layout.home / "planning"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        total = _write_listing(scratch / "listing", options)
        if not total:
            raise UserError(f"source {options.source.path}: nothing in it")
        unit_rows = options.unit_rows or default_unit_rows(total)
        buckets = _deal(scratch, total, unit_rows, options.seed)
        _write_units(layout.rows, buckets, unit_rows)
        options.transform.plan(layout.home, _names(layout.rows, options.source))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    body = {
        "version": PLAN_VERSION,
        "options": options.described(),
        "rows": total,
        "units": -(-total // unit_rows),
    }
    write_json(layout.plan, body)
    return JobPlan(layout)


def _names(rows: Path, source: Source) -> Iterator[str]:
    """Names of all photos in a plan's file of rows."""
    with pa.memory_map(str(rows)) as mapped, pa.ipc.open_file(mapped) as file:
        for unit in range(file.num_record_batches):
            yield from map(source.text, file.get_batch(unit).column("location").to_pylist())


def default_unit_rows(total: int) -> int:
    """Default number of inputs per unit: at most 10,000, and in a small job enough units for many workers.

    It depends on the number of inputs alone, so that the set does not depend on the number of workers.
    """
    return min(_LARGEST_UNIT, max(_SMALLEST_UNIT, -(-total // _UNITS_WANTED)))


def slots(total: int, seed: int) -> np.ndarray:
    """New places of the runs of `RUN` neighbours, int64: run r of the list is run `slots[r]` of the plan.

    The last, shorter run stays last and has no entry.
    """
    return np.random.default_rng(seed).permutation(total // RUN)


def restore_options(described: dict[str, Any]) -> JobOptions:
    """Options restored from the values of `JobOptions.described`.

    Raises:
        UserError: an unknown source or transform.
    """
    return JobOptions(
        **{key: value for key, value in described.items() if key not in ("source", "transform")},
        source=_restore(described["source"], Source),
        transform=_restore(described["transform"], Transform),
    )


def _describe(component: BaseModel) -> dict[str, Any]:
    return {"class": _class_name(type(component)), **component.model_dump(mode="json")}


def _restore(body: dict[str, Any], kinds: type[BaseModel]) -> Any:  # noqa: ANN401 - one of `kinds`
    name = body["class"]
    if name in COMPONENTS:
        importlib.import_module(COMPONENTS[name].partition(":")[0])
    kind = next((each for each in _below(kinds) if _class_name(each) == name), None)
    if kind is None:
        raise UserError(f"class {shown(name)} is none of {', '.join(sorted(COMPONENTS))}; nothing was imported")
    return kind(**{key: value for key, value in body.items() if key != "class"})


def _below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _class_name(kind: type[BaseModel]) -> str:
    place = f"{kind.__module__}:{kind.__qualname__}"
    return _NAMES.get(place, place)


def _copy_identities(old_set: Path, target: Path) -> None:
    try:
        shutil.copyfile(old_set / IDENTITIES_NAME, target)
    except OSError as error:
        raise UserError(
            f"labels from {old_set}: {IDENTITIES_NAME}: {error.strerror}; expected a finished set"
        ) from error


def _write_listing(path: Path, options: JobOptions) -> int:
    total = 0
    batches = options.source.batches()
    if options.identities:
        batches = select(batches, options.identities)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, LISTING) as writer:
        for batch in batches:
            writer.write_batch(batch)
            total += batch.num_rows
    return total


def _deal(scratch: Path, total: int, unit_rows: int, seed: int) -> list[Path]:
    """Write each row of the listing, with its slot, to the bucket of its unit; return the buckets in order."""
    wanted = max(_BUCKET_ROWS, -(-total // _MOST_BUCKETS))
    bucket_rows = unit_rows * max(1, wanted // unit_rows)  # a bucket holds whole units
    paths = [scratch / f"bucket-{i:03d}" for i in range(-(-total // bucket_rows))]
    run_slots = slots(total, seed)
    sinks = [pa.OSFile(str(path), "wb") for path in paths]
    writers = [pa.ipc.new_stream(sink, _SLOTS) for sink in sinks]
    try:
        for batch in _with_slots(scratch / "listing", run_slots):
            bucket = batch.column(0).to_numpy() // bucket_rows
            order = np.argsort(bucket, kind="stable")
            ends = np.searchsorted(bucket[order], np.arange(len(paths) + 1))
            dealt = batch.take(pa.array(order))
            for i, writer in enumerate(writers):
                if ends[i + 1] > ends[i]:
                    writer.write_batch(dealt.slice(ends[i], ends[i + 1] - ends[i]))
    finally:
        for writer, sink in zip(writers, sinks, strict=True):
            writer.close()
            sink.close()
    return paths


def _with_slots(listing: Path, run_slots: np.ndarray) -> Iterator[pa.RecordBatch]:
    position = 0
    with pa.OSFile(str(listing), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            at = np.arange(position, position + batch.num_rows)
            run = at // RUN
            slot = at.copy()
            moved = run < len(run_slots)
            slot[moved] = run_slots[run[moved]] * RUN + at[moved] % RUN
            position += batch.num_rows
            yield pa.RecordBatch.from_arrays([pa.array(slot), pa.array(at), *batch.columns], schema=_SLOTS)


def _write_units(path: Path, buckets: list[Path], unit_rows: int) -> None:
    with written(path) as sink, pa.ipc.new_file(sink, _UNITS) as writer:
        for bucket in buckets:
            with pa.OSFile(str(bucket), "rb") as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all()
            bucket.unlink()
            order = np.argsort(table.column("slot").to_numpy())
            rows = table.drop_columns(["slot"])
            for start in range(0, len(order), unit_rows):
                unit = rows.take(pa.array(order[start : start + unit_rows]))
                writer.write_batch(unit.combine_chunks().to_batches()[0])
