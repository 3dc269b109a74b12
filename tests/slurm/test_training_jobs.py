"""Training as a batch job on a real Slurm of two nodes: stopped in every way, it goes on to the same end.

What the batch script does with each end of its ranks is under test without Slurm in tests/launch/test_slurm_script.py.
"""

import json
import re
import sys

import psutil
import pytest
from typer.testing import CliRunner

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.run_files import SLURM_JOBS_NAME
from dist_train.track.trackers import read_metrics
from launch.cli import app
from tests.launch.recipes import QUICK, REFERENCE, environment, headcount_forked, write_recipe
from tests.sets import write_set
from tests.slurm.cluster import Cluster, missing

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
    pytest.mark.timeout(600),  # on a busy machine
]

STEPS = 100_000  # never reached
CHECKPOINT_EVERY = 10
NO_CHECKPOINTS = {"checkpoint__every_steps": STEPS}  # but the last one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(SLURM_CONF=cluster.environment["SLURM_CONF"]).items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def recipe(directory, tiny_set, **overrides):
    # At a constant rate the losses do not depend on where the run is to end.
    defaults = QUICK | {
        "train__steps": STEPS,
        "checkpoint__every_steps": CHECKPOINT_EVERY,
        "optimizer__schedule": "constant",
        "optimizer__lr": 0.001,
    }
    overrides = defaults | overrides
    return write_recipe(directory / "recipe.yaml", tiny_set, directory / "run", **overrides)


def losses(run_dir):
    return {line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line}


def command(*arguments):
    """The command line in this process, which spares the time of its imports; what it prints."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def submit(path, *options):
    """A job of two nodes with a rank each; its number."""
    call = ("launch", "slurm", path, "--nodes", 2, "--gpus-per-node", 0, "--cpus-per-task", 1, *options)
    told = command(*call)
    number = (path.parent / "run" / SLURM_JOBS_NAME).read_text().split()[-1]
    assert f"job {number};" in told
    return number


def log(path, job):
    return (path.parent / "run" / f"slurm-{job}.log").read_text(errors="replace")  # it may be in the middle of a sign


def last_step(path):
    return max((line["step"] for line in read_metrics(path.parent / "run")), default=0)


def wait_for_step(cluster, path, job, step):
    def reached():
        state = cluster.state(job)
        assert state in ("PENDING", "CONFIGURING", "RUNNING"), f"{state}: {log(path, job)}"
        return last_step(path) >= step

    cluster.wait_until(reached, f"step {step}", 200)


def wait_for_start(cluster, path, job, number):
    """Until the `number`-th start of a job has gone on with its training."""
    cluster.wait_until(lambda: log(path, job).count("resumed from") == number - 1, f"start {number}", 200)
    wait_for_step(cluster, path, job, last_step(path) + 1)


def wait_for_end(cluster, path, job):
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout_s=200)
    return cluster.state(job), log(path, job)


def test_jobs_train_on_all_ranks_of_two_nodes_to_their_end(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, train__steps=3, train__micro_batch_size=4)
    job = submit(path, "--procs-per-node", 2, "--time", 10)
    state, text = wait_for_end(cluster, path, job)
    assert state == "COMPLETED", text
    assert "start 1: 2 nodes (n[0-1]), meeting at" in text
    assert "start 1: ends with status 0" in text
    told = command("launch", "status", tmp_path / "run")
    assert re.search(rf"^{job} +COMPLETED .* headcount-run$", told, re.M), told
    assert "finished, step 3 of 3" in told
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4


def test_a_warning_a_preemption_and_a_killed_rank_change_no_loss(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set)
    job = submit(path, "--partition", "low")
    wait_for_step(cluster, path, job, 5)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_until(lambda: cluster.field(job, "Restarts") == "1", "the job to be queued again")

    wait_for_start(cluster, path, job, 2)
    told = command("launch", "status")
    assert re.search(rf"^{job} +RUNNING .* n\[0-1\] +headcount-run$", told, re.M), told
    assert re.search(rf"^{tmp_path}/run: step \d+ of {STEPS} .* newest checkpoint step \d+", told, re.M), told
    urgent = ("-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    urgent_job = cluster.run("sbatch", "--parsable", *urgent).strip()
    cluster.wait_for(urgent_job, "COMPLETED")

    wait_for_start(cluster, path, job, 3)
    # A job is queued again only if the start that failed made a checkpoint.
    wait_for_step(cluster, path, job, last_step(path) + 2 * CHECKPOINT_EVERY)
    rank_of_job(job, 1).kill()

    wait_for_start(cluster, path, job, 4)
    cluster.run("scancel", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "CANCELLED", text
    cluster.wait_until(lambda: "start 4: ends with status 130" in log(path, job), "the script's end")

    text = log(path, job)
    stops, starts = (
        re.findall(pattern, text, re.M) for pattern in (r"stopped at step (\d+) of", rf"at step (\d+) of {STEPS}$")
    )
    assert len(stops) == 3, text
    assert starts[:2] == stops[:2], "not a step is made twice"
    for said in (
        "start 1: asked to stop",
        "start 1: stopped with a checkpoint; queued again",
        "start 2: stopped with a checkpoint; queued again",
        "start 3: a rank failed",
        "after a checkpoint; queued again",
        "start 4: 2 nodes (n[0-1])",
    ):
        assert said in text, text
    assert text.count("asked to stop") == 1, "before a preemption the ranks are told by Slurm"

    made = losses(tmp_path / "run")
    (tmp_path / "unbroken").mkdir()
    unbroken = recipe(tmp_path / "unbroken", tiny_set, train__steps=max(made), **REFERENCE)
    done = headcount_forked("train", unbroken, ranks=2)
    assert done.returncode == 0, done.stderr
    assert made == losses(tmp_path / "unbroken" / "run")


def test_a_lost_node_is_a_new_start_when_two_are_there_again(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set)
    job = submit(path)
    wait_for_step(cluster, path, job, 2 * CHECKPOINT_EVERY)
    cluster.run("scontrol", "update", "nodename=n1", "state=down", "reason=lost")
    try:
        cluster.wait_until(lambda: cluster.field(job, "Restarts") == "1", "the job to be queued again")
    finally:
        cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    wait_for_start(cluster, path, job, 2)
    cluster.run("scancel", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "CANCELLED", text
    (resumed,) = re.findall(r"resumed from .*step-(\d+)", log(path, job))
    assert int(resumed) >= CHECKPOINT_EVERY


def test_slurm_itself_gives_the_warning_before_the_time_limit(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, **NO_CHECKPOINTS)
    # Slurm counts limits in minutes and gives its warning up to one minute early: here soon after the start.
    job = submit(path, "--time", 2, "--signal-before", 80)
    cluster.wait_until(lambda: cluster.field(job, "Restarts") == "1", "the job to be queued again", 130)
    cluster.run("scancel", job)
    text = log(path, job)
    assert "start 1: asked to stop, 80 s are left" in text
    assert "stopped with a checkpoint; queued again" in text
    assert committed_checkpoints(tmp_path / "run")


def test_a_rank_that_dies_before_any_checkpoint_ends_the_job(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, **NO_CHECKPOINTS)
    job = submit(path)
    wait_for_step(cluster, path, job, 1)
    rank_of_job(job, 1).kill()
    state, text = wait_for_end(cluster, path, job)
    assert state == "FAILED", text
    assert cluster.field(job, "Restarts") == "0"
    assert re.search(r"ends with status 1(37|43)\b", text), text


def rank_of_job(job, rank):
    for process in psutil.process_iter():
        try:
            names, python = process.environ(), process.exe().startswith(sys.base_prefix)
        except psutil.Error:
            continue
        if python and (names.get("SLURM_JOB_ID"), names.get("SLURM_PROCID")) == (job, str(rank)):
            return process
    raise AssertionError(f"no rank {rank} of job {job}")


def test_a_cancelled_job_stays_cancelled_but_leaves_a_checkpoint(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, **NO_CHECKPOINTS)
    job = submit(path)
    wait_for_step(cluster, path, job, 1)
    cluster.run("scancel", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "CANCELLED", text
    cluster.wait_until(lambda: "ends with status 130" in log(path, job), "the script's end")
    assert "queued again" not in log(path, job)
    assert len(committed_checkpoints(tmp_path / "run")) == 1


def test_a_mistake_is_said_once_and_not_tried_again(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set)
    job = submit(path, "data.path=/nowhere")
    state, text = wait_for_end(cluster, path, job)
    assert state == "FAILED", text
    assert text.count("dataset /nowhere: no such directory") == 1
    assert "ends with status 2" in text
    assert "Traceback" not in text
    assert cluster.field(job, "Restarts") == "0"
