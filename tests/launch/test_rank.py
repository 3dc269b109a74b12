import os
import signal
import time

import pytest

from dist_train.run_files import CONFIG_NAME
from dist_train.runtime.stop_signal import StopSignal
from launch.rank import begun_before, repeat_warnings, slurm_ranks
from tests.launch.recipes import QUICK, headcount, headcount_forked, write_recipe
from tests.sets import write_set


def test_an_srun_task_gets_the_names_that_torchrun_would_give():
    task = {"SLURM_PROCID": "13", "SLURM_LOCALID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}
    assert slurm_ranks(task) == {"RANK": "13", "LOCAL_RANK": "5", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
    assert slurm_ranks({}) == {}
    assert slurm_ranks(task | {"RANK": "0"}) == {}


def test_a_job_knows_the_run_that_it_began_and_no_other(tmp_path):
    run_dir = tmp_path / "runs" / "a"
    assert not begun_before(run_dir, "job-1", resume=False)
    (run_dir / CONFIG_NAME).write_text("")
    assert begun_before(run_dir, "job-1", resume=False)
    assert not begun_before(run_dir, "job-2", resume=False)
    assert begun_before(run_dir, "job-1", resume=False), "a refused job must leave no trace"


def test_a_job_that_resumes_a_run_makes_it_its_own(tmp_path):
    (tmp_path / CONFIG_NAME).write_text("")
    assert not begun_before(tmp_path, "job-2", resume=True)
    assert begun_before(tmp_path, "job-2", resume=False)


def test_a_warning_that_comes_before_training_is_there_when_it_begins():
    before = signal.getsignal(signal.SIGUSR2)
    try:
        repeat_warnings()
        os.kill(os.getpid(), signal.SIGUSR2)
        with StopSignal() as stop:
            deadline = time.monotonic() + 30
            while not stop.asked and time.monotonic() < deadline:
                time.sleep(0.01)
        assert stop.asked
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.fixture(scope="module")
def done_run(tmp_path_factory):
    """The command of a job, whose run another one has made."""
    path = tmp_path_factory.mktemp("run")
    write_set(path / "set")
    recipe = write_recipe(path / "a.yaml", path / "set", path / "run", **QUICK, train__steps=2)
    assert not begun_before(path / "run", "another", resume=False)
    assert headcount_forked("train", recipe).returncode == 0
    return ("launch", "torchrun", recipe, "--procs-per-node", 1)


@pytest.mark.parametrize("again", [False, True])
def test_a_run_that_another_job_made_is_refused_by_a_new_one(done_run, again):
    done = headcount(*done_run, *(["--resume"] if again else []))
    assert done.returncode == (0 if again else 2), done.stderr
    # A mistake is said once: what torchrun would start again would make it again.
    assert done.stderr.count("holds another run; continue it with --resume") == (0 if again else 1)
