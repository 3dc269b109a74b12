"""Sources of photos, and the files of a preparation job."""

import io
import tempfile
from collections.abc import Generator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.align_cli import summary
from data_prep.engines.engine import Outcome, Task
from data_prep.engines.queue import UnitQueue
from data_prep.job.plan import JobFiles, JobOptions, JobPlan
from data_prep.job.progress import StageBars
from data_prep.job.report import figures
from data_prep.job.run import resume_job, run_job
from data_prep.sources import tables
from data_prep.sources.folder import FolderSource
from data_prep.sources.open import open_source
from data_prep.transforms import Keep
from dist_train.errors import WorkError
from launch.embed.open import open_origin
from tests.data.sets import encode, picture
from tests.fuzz.formats import JSON, PARQUET, PICKLE, TAR
from tests.fuzz.mutations import BYTES, TEXT
from tests.fuzz.reader import FIXED, Reader, Scene, each_target, files_in, put
from tests.fuzz.readers.sets import tars
from tests.prep.recs import write_rec

SIDE_PX = 16
_SHOTS = {f"shots/{n}.jpg": encode(picture(n, SIDE_PX)) for n in range(4)}
_ADDRESSES = (
    b"http://127.0.0.1:9/x.jpg,ann\nreference://x,ann\nfile:///etc/hostname,bob\nmemory://x,ann\n"
    b"zip://x::file:///etc/passwd,ann\nsimplecache::memory://x,ann\nftp://x/y,bob\nunknown://x,bob\n"
)
tables._PAUSES_S = ()  # of the network, which is closed to fuzzing


class InSequence:
    """An engine without processes. What a unit raises is an error of the job's, but for what is said as ours."""

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        for unit in units:
            try:
                yield Outcome(unit, task(unit))
            except WorkError as error:
                yield Outcome(unit, None, str(error))


def prepare(home: Path, source: Path) -> None:
    """A whole job over `source`, and the reading of the same by `embed`."""
    options = JobOptions(source=open_source(source), transform=Keep(image_size=SIDE_PX))
    try:
        run_job(home / "out", options, InSequence(), StageBars(quiet=True), tries=1)
        summary(home / "out")
    finally:
        origin = open_origin(source)
        for batch in origin.batches():
            origin.read(batch)
        origin.close()


@lru_cache
def _recs() -> list[Scene]:
    shots = [(n % 2, _SHOTS[f"shots/{n}.jpg"]) for n in range(4)]
    scenes = []
    for header, index in ((True, True), (False, False)):
        with tempfile.TemporaryDirectory() as scratch:
            write_rec(Path(scratch), shots, index=index, header=header)
            files = files_in(Path(scratch))
        scenes += each_target(files, "train.rec", *(["train.idx"] * index))
    return scenes


def _csv_tables() -> list[Scene]:
    rows = b"path,identity\nshots/0.jpg,ann\nshots/1.jpg,\xc3\xa9va\nshots/2.jpg,ann\nmissing.jpg,bob\n"
    comma = each_target({**_SHOTS, "t.csv": rows + _ADDRESSES}, "t.csv")
    return comma + each_target({**_SHOTS, "t.tsv": rows.replace(b",", b"\t")}, "t.tsv")


def _parquet_tables() -> list[Scene]:
    sink = io.BytesIO()
    paths = ["shots/0.jpg", "shots/1.jpg", "missing.jpg", "http://127.0.0.1:9/x.jpg", "a\0b", ""]
    pq.write_table(pa.table({"path": paths, "identity": [1, 2, 1, 2, 1, 2]}), sink)
    return each_target({**_SHOTS, "t.parquet": sink.getvalue()}, "t.parquet")


def _prepare_table(home: Path) -> None:
    (table,) = home.glob("t.*")
    prepare(home, table)


def _names() -> list[Scene]:
    return each_target(
        {"photo": _SHOTS["shots/0.jpg"], "names": b"ann/1.jpg\nbob/2.jpg\nx.jpg\nb\xff/\xfe.jpg"}, "names"
    )


def _prepare_folder(home: Path) -> None:
    """A folder whose files have the names that `names` lists."""
    root = home / "root"
    root.mkdir()
    for number, name in enumerate((home / "names").read_bytes()[:4000].splitlines()[:20]):
        parts = [part for part in name.replace(b"\0", b"?").split(b"/") if part not in (b"", b".", b"..")]
        path = Path(bytes(root).decode(), *(part[:100].decode("utf-8", "surrogateescape") for part in parts))
        if len(parts) < 20 and not path.exists() and not any(p.is_file() for p in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((home / "photo").read_bytes() + bytes([number]))
    prepare(home, root)


@lru_cache
def job_files() -> dict[str, bytes]:
    """A finished job of two units in `out`, over the photos beside it."""
    root = FIXED / "job"
    for number in range(6):
        put(f"job/p{number % 2}/{number}.jpg", encode(picture(number, SIDE_PX)))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        options = JobOptions(source=FolderSource(path=root), transform=Keep(image_size=SIDE_PX), unit_rows=3)
        run_job(out, options, InSequence(), StageBars(quiet=True))
        first = run_job(Path(scratch) / "old", options, InSequence(), StageBars(quiet=True))
        assert first.num_classes == 2
        return files_in(Path(scratch))


def _unfinished() -> dict[str, bytes]:
    """The same job before its last step."""
    return {name: data for name, data in job_files().items() if name != "out/manifest.json"}


def _resume(home: Path) -> None:
    resume_job(home / "out", InSequence(), StageBars(quiet=True), tries=1)
    summary(home / "out")
    figures(JobPlan(JobFiles(home / "out")))


def _summarize(home: Path) -> None:
    summary(home / "out")
    figures(JobPlan(JobFiles(home / "out")))


def _identities_scene() -> list[Scene]:
    files = {name: data for name, data in job_files().items() if name.startswith("old/")}
    return each_target({**files, **{f"p/{n}": data for n, data in _SHOTS.items()}}, "old/identities.parquet")


def _prepare_again(home: Path) -> None:
    """A second set that keeps the labels of the first."""
    options = JobOptions(
        source=FolderSource(path=home / "p"), transform=Keep(image_size=SIDE_PX), labels_from=home / "old"
    )
    run_job(home / "out", options, InSequence(), StageBars(quiet=True), tries=1)


@lru_cache
def _queues() -> list[Scene]:
    from data_prep.job.work import MakeUnit

    with tempfile.TemporaryDirectory() as scratch:
        queue = UnitQueue.create(Path(scratch) / "q", MakeUnit(Path("/tmp/x")), [0, 1])
        (unit, *_) = queue.take("w")
        queue.end("w", Outcome(unit, {"given": 1}))
        files = files_in(Path(scratch))
    return each_target(files, *(name for name in files if "task" in name or "ended" in name))


def _read_queue(home: Path) -> None:
    for folder in ("todo", "taken", "ended"):
        (home / "q" / folder).mkdir(exist_ok=True)
    queue = UnitQueue(home / "q")
    queue.task()
    queue.ended()
    queue.taken()


_PARTS = ("out/.prep/plan.json", "out/.prep/units/000000.json", "out/.prep/shards/000001.json")
_TABLES = (
    "out/.prep/units/000000.parquet",
    "out/.prep/plan.arrow",
    "out/.prep/labels.arrow",
    "out/.prep/units/000001.tar",
)
READERS = (
    Reader("prep: tar", tars, lambda home: prepare(home, home / "x.tar"), TAR),
    Reader("prep: rec and idx", _recs, lambda home: prepare(home, home / "train.rec"), BYTES + TEXT[:4]),
    Reader("prep: csv, tsv", _csv_tables, _prepare_table, TEXT),
    Reader("prep: parquet", _parquet_tables, _prepare_table, PARQUET),
    Reader("prep: file names", _names, _prepare_folder, TEXT, weight=0.5),
    Reader("prep: job's json", lambda: each_target(_unfinished(), *_PARTS), _resume, JSON),
    Reader(
        "prep: job's tables",
        lambda: each_target(_unfinished(), *(name for name in _TABLES if name in _unfinished())),
        _resume,
        PARQUET,
    ),
    Reader("prep: rejects", lambda: each_target(job_files(), "out/rejects.parquet"), _summarize, PARQUET, weight=0.5),
    Reader("prep: labels from", _identities_scene, _prepare_again, PARQUET),
    Reader("prep: queue", _queues, _read_queue, PICKLE + JSON),
)
