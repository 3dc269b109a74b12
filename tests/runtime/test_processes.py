"""The environment of processes that are started: threads, a safe path, and nothing left behind."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from dist_train.data.manifest import load_manifest
from dist_train.data.verify import verify_set
from dist_train.errors import WorkError
from dist_train.runtime.in_processes import in_processes
from dist_train.runtime.processes import ONE_THREAD, SAFE_PATH, child_environment, spawning
from tests.data.sets import make_set
from tests.ranks import free_port

LOADED = (
    "import sys, launch.cli, data_prep.align_transform, data_prep.job.run, data_prep.job.report; "
    "import data_prep.engines.local; "
    "print(sorted({'torch', 'torchvision', 'onnxruntime', 'matplotlib.pyplot'} & set(sys.modules)))"
)


def safe_path():
    return sys.flags.safe_path


def test_spawned_processes_have_the_variables_and_a_safe_path_and_this_one_is_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with spawning(ONE_THREAD), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        safe, one = pool.submit(safe_path), [pool.submit(os.getenv, name) for name in ONE_THREAD]
        assert safe.result()
        assert {each.result() for each in one} == {"1"}
    assert os.environ == before


def test_the_environment_is_as_it_was_after_an_error_too():
    before = dict(os.environ)
    with pytest.raises(RuntimeError), spawning({"OMP_NUM_THREADS": "9", "SOMETHING_NEW": "1"}):
        raise RuntimeError
    assert os.environ == before


def test_a_child_looks_for_modules_where_this_process_does_and_not_in_the_working_directory(tmp_path):
    (tmp_path / "dist_train").mkdir()
    (tmp_path / "dist_train" / "__init__.py").write_text("raise RuntimeError('from the working directory')\n")
    command = [sys.executable, "-m", "dist_train.runtime.processes"]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment({}), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_processes_that_verify_a_set_have_a_safe_path(tmp_path, monkeypatch):
    make_set(tmp_path / "set", [4])
    (tmp_path / "struct.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nraise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    verdicts = list(verify_set(Path("set"), load_manifest(tmp_path / "set"), 1))
    assert [verdict.problems for verdict in verdicts] == [[]]
    assert not (tmp_path / "imported").exists()


def test_values_come_in_order_from_processes_and_one_that_dies_is_an_error():
    assert list(in_processes(abs, range(-5, 0), 2)) == [5, 4, 3, 2, 1]
    with pytest.raises(WorkError, match="one of 2 worker processes died; if memory ran out, use fewer workers"):
        list(in_processes(os._exit, [9, 9, 9], 2))
    assert multiprocessing.active_children() == []


def test_the_command_and_the_process_of_a_job_wait_for_no_library_that_only_workers_need():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_rank_shares_the_cores_with_the_others_in_opencv_as_in_torch():
    code = "import cv2, torch; from dist_train.runtime.ranks import join_ranks; join_ranks('cpu', None); "
    code += "print(torch.get_num_threads(), cv2.getNumThreads())"
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    size = len(os.sched_getaffinity(0))
    environment |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    assert [rank.communicate(timeout=120)[0].split() for rank in ranks] == [["1", "1"]] * size


def test_the_safe_path_is_a_variable_that_this_python_knows():
    assert dict(SAFE_PATH) == {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.flags.safe_path)"],
        env=os.environ | SAFE_PATH,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True"
