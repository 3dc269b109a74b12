"""`headcount prep align --engine slurm` on a real Slurm of two nodes: the bytes of one process, whatever dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.engines.slurm import NAME, SlurmEngine
from data_prep.job.plan import JobFiles
from dist_train.errors import UserError, WorkError
from tests.launch.recipes import environment
from tests.prep.jobs import aligned_alike, content, messy, options, orders, photos, rejects, run, threads_of_workers
from tests.prep.standin import Failing, Importing, Noting, Upper
from tests.slurm.cluster import Cluster, missing

WORKERS_PATH = f"{Path(__file__).parent / 'site'}{os.pathsep}{os.getcwd()}"

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("PYTHONPATH", WORKERS_PATH)
        yield cluster


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    base = tmp_path_factory.mktemp("reference")
    root = messy(base / "photos")
    run(base / "out", options(root))
    return root, base / "out"


def engine(out, tasks=2, *more):
    return SlurmEngine(JobFiles(out).arrays, tasks, more, ask_every_s=0.5)


def queued(cluster):
    return cluster.run("squeue", "--noheader", "--format=%j").split()


def test_an_array_over_two_nodes_makes_the_same_bytes_as_one_process(cluster, reference, tmp_path):
    root, out = reference
    (tmp_path / "notes").mkdir()
    noting = Noting(notes=tmp_path / "notes", who="SLURMD_NODENAME", pause_s=0.05)
    run(tmp_path / "out", options(root, noting), engine(tmp_path / "out", 2, "exclusive"))
    assert content(tmp_path / "out") == content(out)
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {"n0", "n1"}
    assert queued(cluster) == []
    assert not [path for path in JobFiles(tmp_path / "out").arrays.iterdir() if path.is_dir()], "no queue is left"


def test_tasks_use_one_thread_and_do_not_look_for_modules_in_the_working_directory(cluster, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([WORKERS_PATH, *filter(None, sys.path)]))
        assert threads_of_workers(tmp_path, engine) == {f"torch 1, cv2 1, here {os.getcwd() in sys.path}"}
        (tmp_path / "z3").mkdir()
        (tmp_path / "z3" / "__init__.py").touch()
        patch.chdir(tmp_path)
        run(tmp_path / "more", options(tmp_path / "photos", Importing(module="z3")), engine(tmp_path / "more"))


def test_the_detector_gives_the_same_bytes_over_two_nodes(cluster, tmp_path):
    aligned_alike(tmp_path, engine)


def test_tasks_that_die_fail_their_units_alone_and_others_are_submitted_for_the_rest(cluster, tmp_path):
    root = photos(tmp_path / "photos")
    (root / "person 0" / "x.jpg").write_bytes(b"kill this")
    opts = options(root, Failing(orders=orders(tmp_path, kill=2)))
    run(tmp_path / "out", opts, engine(tmp_path / "out", 1))
    assert rejects(tmp_path / "out") == {}
    run(tmp_path / "one", opts)
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_a_job_killed_where_it_waits_leaves_an_array_that_its_next_start_stops(cluster, reference, tmp_path):
    root, out = reference
    target = tmp_path / "out"
    script = tmp_path / "child.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tests.prep.jobs import options, run\n"
        "from tests.prep.standin import Upper\n"
        "from tests.slurm.test_prep_array import engine\n"
        f"run(Path({str(target)!r}), options(Path({str(root)!r}), Upper(pause_s=0.1)), engine(Path({str(target)!r})))\n"
    )
    variables = environment(PYTHONPATH=WORKERS_PATH, SLURM_CONF=cluster.environment["SLURM_CONF"])
    job = subprocess.Popen([sys.executable, script], env=variables)
    cluster.wait_until(lambda: list(target.glob(".prep/units/*.json")), "the first unit")
    job.send_signal(signal.SIGKILL)
    job.wait()
    left = queued(cluster)
    assert left
    assert all(name.startswith(NAME) for name in left)
    made = {path.name: path.stat().st_mtime_ns for path in target.glob(".prep/units/*.json")}
    assert len(made) < 6, "it is stopped before its end"
    run(target, options(root, Upper(pause_s=0.1)))  # another engine, which must stop the array all the same
    assert queued(cluster) == []
    assert content(target) == content(out)
    after = {path.name: path.stat().st_mtime_ns for path in target.glob(".prep/units/*.json")}
    assert made.items() <= after.items(), "nothing is made twice"


def test_options_that_slurm_refuses_and_tasks_that_cannot_start_are_said(cluster, reference, tmp_path, monkeypatch):
    root, _ = reference
    with pytest.raises(UserError, match=r"invalid partition specified: nowhere; .*; change --sbatch or --workers"):
        run(tmp_path / "out", options(root), engine(tmp_path / "out", 2, "partition=nowhere"))
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(WorkError, match=r"ended without a unit of work done; see .*log-\*\.txt"):
        run(tmp_path / "out", options(root), engine(tmp_path / "out"))
    assert "/nowhere/python" in (JobFiles(tmp_path / "out").arrays / "log-0.txt").read_text()
    assert queued(cluster) == []
