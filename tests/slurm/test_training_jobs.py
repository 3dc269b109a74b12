"""Training as a batch job on a real Slurm of two nodes: stopped in every way, it goes on to the same end."""

import re
import sys

import psutil
import pytest

from dist_train.checkpoint import committed_checkpoints
from dist_train.trackers import read_metrics
from launch.slurm import JOBS_NAME
from tests.launch.recipes import environment, headcount, write_recipe
from tests.sets import write_set
from tests.slurm.cluster import Cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}")

STEPS = 303  # enough that a job is still at work when it is stopped


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_set):
    """Losses by step of a run of two ranks that nobody stops."""
    directory = tmp_path_factory.mktemp("unbroken")
    done = headcount("launch", "local", recipe(directory, tiny_set), "--ranks", 2)
    assert done.returncode == 0, done.stderr
    return losses(directory / "run")


def recipe(directory, tiny_set, **overrides):
    overrides = {"train__steps": STEPS, "checkpoint__every_steps": 20} | overrides
    return write_recipe(directory / "recipe.yaml", tiny_set, directory / "run", **overrides)


def losses(run_dir):
    return {line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line}


def on_cluster(cluster, *arguments):
    return headcount(*arguments, env=environment(SLURM_CONF=cluster.environment["SLURM_CONF"]))


def submit(cluster, path, *options):
    """A job of two nodes with a rank each; its number."""
    call = ("launch", "slurm", path, "--nodes", 2, "--gpus-per-node", 0, "--cpus-per-task", 1, *options)
    done = on_cluster(cluster, *call)
    assert done.returncode == 0, done.stderr
    number = (path.parent / "run" / JOBS_NAME).read_text().split()[-1]
    assert f"job {number};" in done.stdout
    return number


def log(path, job):
    return (path.parent / "run" / f"slurm-{job}.log").read_text()


def wait_for_step(cluster, path, job, step):
    def reached():
        state = cluster.state(job)
        assert state in ("PENDING", "CONFIGURING", "RUNNING"), f"{state}: {log(path, job)}"
        return any(line["step"] >= step for line in read_metrics(path.parent / "run"))

    cluster.wait_until(reached, f"step {step}", 120)


def wait_for_end(cluster, path, job):
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout_s=200)
    return cluster.state(job), log(path, job)


def test_two_nodes_train_as_two_ranks_and_a_warning_means_checkpoint_requeue_and_resume(
    cluster, tmp_path, tiny_set, unbroken
):
    path = recipe(tmp_path, tiny_set)
    job = submit(cluster, path, "--time", 10)
    wait_for_step(cluster, path, job, 25)
    told = on_cluster(cluster, "launch", "status").stdout
    assert re.search(rf"^{job} +RUNNING .* n\[0-1\] +headcount-run$", told, re.M), told
    assert re.search(rf"^{tmp_path}/run: step \d+ of {STEPS} .* newest checkpoint step \d+", told, re.M), told
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "COMPLETED", text
    stopped, resumed = re.search(r"stopped at step (\d+) of", text), re.search(r"at step (\d+) of 303$", text, re.M)
    assert stopped, text
    assert resumed, text
    assert stopped[1] == resumed[1], "not a step is made twice"
    assert "start 1: asked to stop" in text
    assert "start 2: 2 nodes (n[0-1])" in text
    assert cluster.field(job, "Restarts") == "1"
    assert "COMPLETED" in on_cluster(cluster, "launch", "status", tmp_path / "run").stdout
    assert losses(tmp_path / "run") == unbroken


def test_slurm_itself_gives_the_warning_before_the_time_limit(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, train__steps=100_000)
    # Slurm counts limits in minutes and gives its warning up to one minute early: here soon after the start.
    job = submit(cluster, path, "--time", 2, "--signal-before", 80)
    wait_for_step(cluster, path, job, 1)
    cluster.wait_until(lambda: cluster.field(job, "Restarts") == "1", "the job to be queued again", 130)
    cluster.run("scancel", job)
    text = log(path, job)
    assert "start 1: asked to stop, 80 s are left" in text
    assert "stopped with a checkpoint; queued again" in text
    assert committed_checkpoints(tmp_path / "run")


def test_a_preempted_job_writes_a_checkpoint_and_comes_back(cluster, tmp_path, tiny_set, unbroken):
    path = recipe(tmp_path, tiny_set)
    job = submit(cluster, path, "--partition", "low")
    wait_for_step(cluster, path, job, 25)
    more_urgent = cluster.run(
        "sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"
    ).strip()
    cluster.wait_for(more_urgent, "COMPLETED")
    state, text = wait_for_end(cluster, path, job)
    assert state == "COMPLETED", text
    assert "asked to stop" not in text, "the ranks were told by Slurm"
    assert "start 1: stopped with a checkpoint; queued again" in text
    assert losses(tmp_path / "run") == unbroken


def test_a_killed_rank_takes_the_job_back_to_its_checkpoint(cluster, tmp_path, tiny_set, unbroken):
    path = recipe(tmp_path, tiny_set)
    job = submit(cluster, path)
    wait_for_step(cluster, path, job, 45)
    rank_of_job(job, 1).kill()
    state, text = wait_for_end(cluster, path, job)
    assert state == "COMPLETED", text
    assert "after a checkpoint; queued again" in text
    assert losses(tmp_path / "run") == unbroken


def test_a_rank_that_dies_before_any_checkpoint_ends_the_job(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, checkpoint__every_steps=100_000)
    job = submit(cluster, path)
    wait_for_step(cluster, path, job, 5)
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
    path = recipe(tmp_path, tiny_set, train__steps=100_000, checkpoint__every_steps=100_000)
    job = submit(cluster, path)
    wait_for_step(cluster, path, job, 5)
    cluster.run("scancel", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "CANCELLED", text
    cluster.wait_until(lambda: "ends with status 130" in log(path, job), "the script's end")
    assert "queued again" not in log(path, job)
    assert len(committed_checkpoints(tmp_path / "run")) == 1


def test_without_requeue_a_warning_leaves_a_checkpoint_and_the_job_ends(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set, train__steps=100_000, checkpoint__every_steps=100_000)
    job = submit(cluster, path, "--no-requeue")
    wait_for_step(cluster, path, job, 5)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    state, text = wait_for_end(cluster, path, job)
    assert state == "FAILED", text
    assert "ends with status 130" in text
    assert len(committed_checkpoints(tmp_path / "run")) == 1


def test_a_mistake_is_said_once_and_not_tried_again(cluster, tmp_path, tiny_set):
    path = recipe(tmp_path, tiny_set)
    job = submit(cluster, path, "data.path=/nowhere")
    state, text = wait_for_end(cluster, path, job)
    assert state == "FAILED", text
    assert text.count("dataset /nowhere: no such directory") == 1
    assert "ends with status 2" in text
    assert "Traceback" not in text
    assert cluster.field(job, "Restarts") == "0"


def test_an_array_of_commands_runs_on_both_nodes(cluster, tmp_path):
    for number in range(4):
        write_set(tmp_path / f"set-{number}", classes=3 + number, views=4)
    (tmp_path / "set-3" / "tiny-000000.tar").write_bytes(b"damaged")
    command = f"{sys.executable} -m launch data verify {tmp_path}/set-$SLURM_ARRAY_TASK_ID"
    options = ("--parsable", "--array=0-3", "-n1", "-o", str(tmp_path / "%a.log"))
    job = cluster.run("sbatch", *options, "--wrap", command).strip()
    for number in range(4):
        cluster.wait_for(f"{job}_{number}", "COMPLETED", "FAILED")
    logs = [(tmp_path / f"{number}.log").read_text() for number in range(4)]
    states = [cluster.state(f"{job}_{number}") for number in range(4)]
    assert states == ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"], logs
    assert {cluster.field(f"{job}_{number}", "NodeList") for number in range(4)} == {"n0", "n1"}
