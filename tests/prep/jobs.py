"""Small jobs: sources of texts instead of photos, and what a set holds, read without our own readers."""

import tarfile
from pathlib import Path

import cv2
import matplotlib
import pyarrow.parquet as pq
import pytest

from data_prep.align_transform import Align
from data_prep.engines.engine import attempt
from data_prep.engines.local import LocalEngine
from data_prep.job.plan import JobOptions
from data_prep.job.progress import StageBars
from data_prep.job.run import run_job
from data_prep.sources.folder import FolderSource
from dist_train.data.index import read_index
from dist_train.data.manifest import load_manifest
from dist_train.runtime.processes import ONE_THREAD
from tests.prep.standin import Counting, Upper


class InProcess:
    """An engine without processes."""

    def __init__(self, order=None):
        self.order = order or (lambda units: units)
        self.units = []

    def run(self, task, units):
        for unit in self.order(list(units)):
            self.units.append(unit)
            yield attempt(task, unit)


def photos(root: Path, people: int = 6, each: int = 9) -> Path:
    for person in range(people):
        folder = root / f"person {person}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (folder / f"{number}.jpg").write_bytes(f"photo {person} {number}".encode())
    return root


def portraits(root: Path) -> Path:
    """Photos with faces of three people, which are one: mirrored, enlarged, cut differently."""
    photo = cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    for number in range(9):
        folder = root / f"person {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        grown = cv2.resize(photo, None, fx=1 + number / 20, fy=1 + number / 20)
        cv2.imwrite(str(folder / f"{number}.jpg"), grown[5 * number :, 9 * number :][:, :: (-1) ** number])
    return root


def options(root: Path, transform=None, **more) -> JobOptions:
    more = {"unit_rows": 10, "min_images": 2, **more}
    return JobOptions(source=FolderSource(path=root), transform=transform or Upper(), **more)


def run(out, opts, engine=None, **more):
    return run_job(out, opts, engine or InProcess(), StageBars(quiet=True), **more)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def samples(out: Path) -> dict[str, tuple[int, bytes]]:
    """Key -> (label, picture), by tarfile; checks the index on the way."""
    found = {}
    for shard in load_manifest(out).shards:
        members = read_index((out / shard.name).with_suffix(".idx"), (out / shard.name).stat().st_size)
        with tarfile.open(out / shard.name) as tar:
            data = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for sample in members:
            key = sample[0].name.partition(".")[0]
            assert key not in found
            found[key] = (int(data[f"{key}.cls"]), data[sample[0].name])
    return found


def identities(out: Path) -> dict[str, tuple[int, int]]:
    rows = pq.read_table(out / "identities.parquet").to_pylist()
    return {row["name"]: (row["label"], row["count"]) for row in rows}


def rejects(out: Path) -> dict[str, tuple[str, str]]:
    return {row["source"]: (row["reason"], row["detail"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()}


def messy(root: Path) -> Path:
    """Photos with every kind of reject among them."""
    photos(root)
    (root / "person 1" / "3.jpg").write_bytes(b"bad")
    (root / "person 2" / "4.jpg").write_bytes(b"photo 0 0")  # a copy under another name
    (root / "person 0" / "copy.jpg").write_bytes(b"photo 0 0")
    (root / "person 3" / "5.jpg").unlink()
    (root / "person 3" / "5.jpg").symlink_to("nowhere")
    (root / "alone").mkdir()
    (root / "alone" / "only.jpg").write_bytes(b"photo alone")
    (root / "none").mkdir()
    (root / "none" / "1.jpg").write_bytes(b"bad too")
    (root / "person 4" / "two.jpg").write_bytes(b"two faces")
    return root


def orders(tmp_path, **times) -> Path:
    (tmp_path / "orders").mkdir()
    for name, count in times.items():
        (tmp_path / "orders" / name).write_text(str(count))
    return tmp_path / "orders"


def threads_of_workers(base: Path, engine_of) -> set[str]:
    """What `Counting` notes under the engine that `engine_of(out)` gives, where no variable limits threads."""
    (base / "notes").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ONE_THREAD:
            patch.delenv(name, raising=False)
        counting = Counting(notes=base / "notes", pause_s=0.05)
        run(base / "out", options(photos(base / "photos"), counting), engine_of(base / "out"))
    return {path.name for path in (base / "notes").iterdir()}


def aligned_alike(base: Path, engine_of) -> None:
    """With the detector itself: the engine that `engine_of(out)` gives makes the bytes of one local process."""
    opts = options(portraits(base / "photos"), Align(batch=2), unit_rows=3)
    run(base / "out", opts, engine_of(base / "out"))
    run(base / "one", opts, LocalEngine(1))
    assert len(samples(base / "one")) == 9
    assert content(base / "out") == content(base / "one")
