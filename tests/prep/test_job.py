import contextlib
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from data_prep.engines.local import LocalEngine
from data_prep.job.plan import JobFiles, JobPlan
from data_prep.job.progress import StageBars
from data_prep.job.run import resume_job
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.runtime.lock import only_job
from tests.prep.jobs import (
    InProcess,
    content,
    identities,
    messy,
    options,
    orders,
    photos,
    rejects,
    run,
    samples,
    threads_of_workers,
)
from tests.prep.standin import Counting, Failing, Importing, Upper


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A messy source and the set that one uninterrupted job in this process makes of it."""
    base = tmp_path_factory.mktemp("reference")
    root = messy(base / "photos")
    run(base / "out", options(root))
    return root, base / "out"


def test_every_input_is_kept_or_rejected_with_its_reason(reference):
    root, out = reference
    given = {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}
    rejected = rejects(out)
    assert rejected == {
        "person 1/3.jpg": ("no face", "it says bad"),
        "none/1.jpg": ("no face", "it says bad"),
        "person 0/copy.jpg": ("duplicate", "same bytes as person 0/0.jpg"),
        "person 2/4.jpg": ("duplicate", "same bytes as person 0/0.jpg"),
        "person 3/5.jpg": ("vanished", "listed at planning, not there any more"),
        "alone/only.jpg": ("few pictures", "its identity has 1, the least is 2"),
    }
    kept = samples(out)
    assert len({key.partition("-")[0] for key in kept}) + len(rejected) == len(given)
    assert sum(count for _, count in identities(out).values()) == len(kept) == load_manifest(out).samples


def test_labels_follow_sorted_names_and_each_picture_has_its_own(reference):
    _, out = reference
    names = identities(out)
    assert [name for name, _ in sorted(names.items(), key=lambda item: item[1])] == [f"person {i}" for i in range(6)]
    for label, picture in samples(out).values():
        if b"TWO" not in picture:
            assert picture.split()[1] == str(label).encode()


def test_several_faces_of_a_photo_have_keys_of_their_own_and_records_name_the_source(reference):
    _, out = reference
    two = sorted((key, picture) for key, (_, picture) in samples(out).items() if b"TWO" in picture)
    assert [picture for _, picture in two] == [b"TWO FACES", b"TWO FACES2"]
    assert [key[-3:] for key, _ in two] == ["-00", "-01"]
    records = []
    for shard in load_manifest(out).shards:
        with tarfile.open(out / shard.name) as tar:
            records += [json.loads(tar.extractfile(n).read()) for n in tar.getnames() if n == f"{two[0][0]}.json"]
    assert records == [{"source": "person 4/two.jpg", "length": 9}]


def test_an_identity_is_spread_over_the_shards(tmp_path):
    root = photos(tmp_path / "photos", people=4, each=64)
    run(tmp_path / "out", options(root, unit_rows=32))
    shards_of = {}
    for shard in load_manifest(tmp_path / "out").shards:
        with tarfile.open(tmp_path / "out" / shard.name) as tar:
            for name in tar.getnames():
                if name.endswith(".cls"):
                    shards_of.setdefault(tar.extractfile(name).read(), set()).add(shard.name)
    assert all(len(shards) >= 4 for shards in shards_of.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same_bytes(reference, tmp_path, workers):
    root, out = reference
    run(tmp_path / "out", options(root), LocalEngine(workers))
    assert content(tmp_path / "out") == content(out)


def test_workers_use_one_thread_whatever_the_environment_says(tmp_path, monkeypatch):
    assert threads_of_workers(tmp_path, lambda _: LocalEngine(2)) == {f"torch 1, cv2 1, here {os.getcwd() in sys.path}"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (tmp_path / "again").mkdir()
    noted = Counting(notes=tmp_path / "again")
    run(tmp_path / "more", options(tmp_path / "photos", noted), LocalEngine(1))
    assert [path.name.partition(",")[0] for path in (tmp_path / "again").iterdir()] == ["torch 1"]
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_workers_do_not_look_for_modules_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "z3").mkdir()
    (tmp_path / "z3" / "__init__.py").touch()
    root = photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "out", options(root, Importing(module="z3")), LocalEngine(1))


def test_the_order_of_units_does_not_matter(reference, tmp_path):
    root, out = reference
    shuffled = random.Random(3)
    run(tmp_path / "out", options(root), InProcess(lambda units: shuffled.sample(units, len(units))))
    assert content(tmp_path / "out") == content(out)


def test_a_job_stopped_after_any_unit_goes_on_and_repeats_nothing(reference, tmp_path):
    root, out = reference

    class Stop(BaseException):
        pass

    class Stopping(InProcess):
        def run(self, task, units):
            for outcome in super().run(task, units):
                yield outcome
                raise Stop

    made = []
    for _ in range(100):
        engine = Stopping()
        try:
            run(tmp_path / "out", options(root), engine)
        except Stop:
            made += engine.units
            continue
        break
    units = JobPlan(JobFiles(out)).units
    assert sorted(made) == sorted([*range(units), *range(units)])  # made once, sealed once
    assert content(tmp_path / "out") == content(out)
    assert not list((tmp_path / "out" / ".prep" / "units").glob("*.tar"))


def test_what_a_killed_worker_was_writing_is_not_left_in_the_set(reference, tmp_path):
    root, out = reference

    class Leaving(InProcess):
        def run(self, task, units):
            yield from super().run(task, units)
            (tmp_path / "out" / ".x-000000.tar.node.7.tmp").write_bytes(b"half a shard")

    run(tmp_path / "out", options(root), Leaving())
    assert content(tmp_path / "out") == content(out)


def test_a_finished_job_does_nothing_again(reference):
    root, out = reference
    engine = InProcess()
    run(out, options(root), engine)
    assert engine.units == []


def test_other_options_on_the_same_output_are_refused_by_name(reference):
    root, out = reference
    with pytest.raises(UserError, match="planned with other options: min_images was 2, is 5"):
        run(out, options(root, min_images=5))
    with pytest.raises(UserError, match=r"transform\.image_size was 8, is 16"):
        run(out, options(root, Upper(image_size=16)))


def test_two_jobs_on_one_output_refuse_each_other(reference, tmp_path):
    root, _ = reference
    layout = JobFiles(tmp_path / "out")
    layout.home.mkdir(parents=True)
    with only_job(layout.lock, layout.out), pytest.raises(UserError, match=rf"another job.*{os.getpid()}"):
        run(tmp_path / "out", options(root))


def test_a_set_made_by_something_else_is_not_touched(reference, tmp_path):
    root, out = reference
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_bytes((out / "manifest.json").read_bytes())
    with pytest.raises(UserError, match="holds a set already"):
        run(tmp_path / "out", options(root))


def test_an_empty_source_and_one_without_a_usable_picture_are_said(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="nothing in it"):
        run(tmp_path / "out", options(tmp_path / "photos"))
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(b"bad")
    (tmp_path / "photos" / "a" / "2.jpg").write_bytes(b"good")
    told = (
        r"no picture is left of 2 inputs: 1 no face, 1 of identities with fewer than 2 \(min_images\), "
        "e.g. a/1.jpg: no face: it says bad; details in"
    )
    with pytest.raises(WorkError, match=told):
        run(tmp_path / "out", options(tmp_path / "photos"))


@pytest.mark.parametrize("kind", ["kill", "raise"])
def test_a_unit_that_fails_is_tried_again(tmp_path, kind):
    root = photos(tmp_path / "photos")
    (root / "person 0" / "x.jpg").write_bytes(f"{kind} this".encode())
    run(tmp_path / "out", options(root, Failing(orders=orders(tmp_path, **{kind: 2}))), LocalEngine(2))
    assert rejects(tmp_path / "out") == {}
    assert load_manifest(tmp_path / "out").samples == 55


@pytest.mark.parametrize(
    ("kind", "error"), [("kill", r"the worker died \(SIGKILL\)"), ("raise", "RuntimeError: ordered")]
)
def test_a_unit_that_fails_every_time_is_set_aside_and_can_be_retried(tmp_path, kind, error):
    root = photos(tmp_path / "photos")
    (root / "person 0" / "x.jpg").write_bytes(f"{kind} this".encode())
    opts = options(root, Failing(orders=orders(tmp_path, **{kind: 3})))
    with pytest.raises(WorkError, match=rf"1 of 6 units were set aside, \d+ inputs; .*{error}.*resume .*out --retry"):
        run(tmp_path / "out", opts, LocalEngine(2))
    out = tmp_path / "out"
    lost = rejects(out)
    assert {reason for reason, _ in lost.values()} == {"unit failed"}
    assert len(samples(out)) + len(lost) == 55
    resume_job(out, InProcess(), StageBars(quiet=True), retry=True)
    assert rejects(out) == {}
    assert len(samples(out)) == 55
    (root / "person 0" / "x.jpg").write_bytes(f"{kind} this".encode())
    (tmp_path / "orders" / kind).write_text("0")
    run(tmp_path / "again", opts)
    assert content(out) == content(tmp_path / "again")


def test_a_full_disk_stops_the_job_and_sets_nothing_aside(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "person 0" / "x.jpg").write_bytes(b"full disk")
    opts = options(root, Failing(orders=orders(tmp_path, full=1)))
    with pytest.raises(WorkError, match="No space left on device; make room and run the same command again"):
        run(tmp_path / "out", opts)
    run(tmp_path / "out", opts)
    assert rejects(tmp_path / "out") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_really_full_disk_leaves_a_job_that_goes_on(tmp_path):
    root = tmp_path / "photos"
    for number in range(64):
        (root / f"p{number % 4}").mkdir(parents=True, exist_ok=True)
        (root / f"p{number % 4}" / f"{number}.jpg").write_bytes(b"%03d" % number * 4000)
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", out], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(WorkError, match="No space left on device"):
            run(out, options(root, unit_rows=8), LocalEngine(2))
        subprocess.run(["mount", "-o", "remount,size=16m", out], check=True)
        run(out, options(root, unit_rows=8), LocalEngine(2))
        run(tmp_path / "other", options(root, unit_rows=8))
        assert content(out) == content(tmp_path / "other")
    finally:
        subprocess.run(["umount", out], check=True)


@pytest.mark.parametrize("stage", ["make_plan", "decide", "write_set"])
def test_a_disk_that_is_full_between_the_units_is_said_too(tmp_path, monkeypatch, stage):
    root = photos(tmp_path / "photos")

    def fill(*_):
        with pa.OSFile("/dev/full", "wb") as file:
            file.write(bytes(1 << 20))

    with monkeypatch.context() as patch:
        patch.setattr(f"data_prep.job.run.{stage}", fill)
        with pytest.raises(WorkError, match="No space left on device; make room and run the same command again"):
            run(tmp_path / "out", options(root))
    run(tmp_path / "out", options(root))
    assert len(samples(tmp_path / "out")) == 54


def test_a_lost_source_sets_units_aside_instead_of_rejecting_every_photo(tmp_path):
    root = photos(tmp_path / "photos")

    class Unplugged(InProcess):
        def run(self, task, units):
            root.rename(tmp_path / "elsewhere")
            (root / "other").mkdir(parents=True)
            try:
                yield from super().run(task, units)
            finally:
                (root / "other").rmdir()
                root.rmdir()
                (tmp_path / "elsewhere").rename(root)

    with pytest.raises(
        WorkError, match="no unit of 6 could be made; the first: WorkError: none of 10 inputs can be read"
    ):
        run(tmp_path / "out", options(root), Unplugged())
    run(tmp_path / "out", options(root))
    assert rejects(tmp_path / "out") == {}


class Losing(Upper):
    """Moves the photos away when it is handed the first ones; `stays` says whether an empty folder is left of them."""

    root: Path
    stays: bool

    def _process(self, batch):
        elsewhere = self.root.with_name("elsewhere")
        if not elsewhere.exists():
            elsewhere.mkdir()
            self.root.rename(elsewhere / "photos")
            if self.stays:
                self.root.mkdir()
        return super()._process(batch)


@pytest.mark.parametrize("stays", [True, False])
def test_a_source_that_is_lost_in_the_middle_of_a_unit_rejects_nothing(tmp_path, stays):
    root = photos(tmp_path / "photos")
    opts = options(root, Losing(root=root, stays=stays))
    with pytest.raises(WorkError, match=r"no unit of 6 could be made; .*: the source's storage is lost"):
        run(tmp_path / "out", opts)
    if stays:
        root.rmdir()
    (tmp_path / "elsewhere" / "photos").rename(root)
    run(tmp_path / "out", opts)
    assert rejects(tmp_path / "out") == {}


def test_large_photos_are_handed_over_before_they_fill_the_memory(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    handed = []

    class Weighing(Upper):
        def _process(self, batch):
            handed.append(sum(map(len, batch)))
            return super()._process(batch)

    run(tmp_path / "usual", options(root, Weighing(batch=5)))
    assert max(handed) == 5 * len(b"photo 0 0")
    handed.clear()
    monkeypatch.setattr("data_prep.job.work._HELD_BYTES", 2 * len(b"photo 0 0"))
    run(tmp_path / "large", options(root, Weighing(batch=5)))
    assert max(handed) == 2 * len(b"photo 0 0")
    assert content(tmp_path / "large") == content(tmp_path / "usual")


def test_workers_in_another_directory_find_an_output_that_was_given_from_here(reference, tmp_path, monkeypatch):
    root, out = reference

    class Elsewhere(InProcess):
        def run(self, task, units):
            with contextlib.chdir(root):
                outcomes = list(super().run(task, units))
            yield from outcomes

    monkeypatch.chdir(tmp_path)
    run(Path("out"), options(root), Elsewhere())
    assert content(tmp_path / "out") == content(out)
    for name in ("manifest.json", ".prep/shards/000000.json"):
        (tmp_path / "out" / name).unlink()
    resume_job(Path("out"), Elsewhere(), StageBars(quiet=True))
    assert content(tmp_path / "out") == content(out)


def test_old_labels_stay_when_identities_are_added(reference, tmp_path):
    _, old = reference
    root = photos(tmp_path / "photos", people=3)
    for name in ("12", "7", "anna"):
        (root / name).mkdir()
        for number in range(2):
            (root / name / f"{number}.jpg").write_bytes(f"photo {name} {number}".encode())
    run(tmp_path / "out", options(root, labels_from=old))
    found = identities(tmp_path / "out")
    assert {name: label for name, (label, _) in found.items() if name in identities(old)} == {
        name: label for name, (label, _) in identities(old).items()
    }
    assert [found[name] for name in ("7", "12", "anna")] == [(6, 2), (7, 2), (8, 2)]
    assert [found[f"person {i}"][1] for i in range(6)] == [9, 9, 9, 0, 0, 0]
    assert load_manifest(tmp_path / "out").num_classes == 9
