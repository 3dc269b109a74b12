import json
import os

import pytest

from dist_train.checkpoint.store import Progress, write_progress
from dist_train.run_files import SLURM_JOBS_NAME
from dist_train.runtime.lock import Lock
from launch.status import TAIL_BYTES, duration, jobs_of, last_figures, run_state
from tests.launch.recipes import environment, headcount_here, write_recipe

NOW = 1_800_000_000.0


@pytest.fixture
def run_dir(tmp_path):
    """A run of 100 steps of 48 images at its 40th, with a checkpoint of step 32 that is ten minutes old."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_recipe(run_dir / "config.yaml", tmp_path / "set", run_dir, train__steps=100)
    lines = [{"step": step, "loss": 10 / step, "images_per_s": 24.0, "epoch": step / 50} for step in range(1, 41)]
    lines.append({"step": 40, "verification/lfw/accuracy": 0.9})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    os.utime(run_dir / "metrics.jsonl", (NOW - 5, NOW - 5))
    for step in (16, 32):
        checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        write_progress(checkpoint, Progress(step, step * 48, 32, 10, "digest"))
        (checkpoint / ".metadata").write_bytes(b"")
        os.utime(checkpoint, (NOW - 600, NOW - 600))
    return run_dir


def test_a_run_tells_step_loss_rate_time_left_and_the_age_of_its_checkpoint(run_dir):
    state = run_state(run_dir, NOW)
    assert (state.step, state.total_steps, state.loss, state.images_per_s) == (40, 100, 0.25, 24.0)
    assert state.seconds_left == 60 * 48 / 24
    assert (state.figures_age_s, state.checkpoint, state.finished) == (5, (32, 600), False)
    assert str(state) == (
        "step 40 of 100 (40%), loss 0.25, 24 images/s, 2 min left, last figures 5 s ago, "
        "newest checkpoint step 32, 10 min old"
    )


def test_the_length_of_a_run_in_epochs_follows_from_its_figures(run_dir, tmp_path):
    write_recipe(run_dir / "config.yaml", tmp_path / "set", run_dir, train__steps=None, train__epochs=3.0)
    assert run_state(run_dir, NOW).total_steps == 150


def test_a_finished_run_says_so(run_dir):
    (run_dir / "summary.json").write_text("{}")
    assert str(run_state(run_dir, NOW)).startswith("finished, step 40 of 100")


def test_a_run_whose_job_is_still_at_work_after_the_summary_is_exporting_and_a_resumed_one_is_training(run_dir):
    (run_dir / "summary.json").write_text("{}")
    os.utime(run_dir / "summary.json", (NOW - 900, NOW - 900))
    with Lock(run_dir / "lock"):
        os.utime(run_dir / "lock", (NOW - 800, NOW - 800))
        assert str(run_state(run_dir, NOW)).startswith("step 40 of 100 (40%), loss 0.25, 24 images/s, 2 min left")
        os.utime(run_dir / "summary.json", (NOW - 10, NOW - 10))
        assert str(run_state(run_dir, NOW)).startswith("evaluated, now exporting, step 40 of 100 (40%), loss 0.25, 24")
        assert "left" not in str(run_state(run_dir, NOW))
    assert str(run_state(run_dir, NOW)).startswith("finished, step 40 of 100")


def test_a_run_that_has_only_begun_has_no_figures_yet(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    for path in (run_dir / "checkpoints").glob("*/.metadata"):
        path.unlink()
    assert str(run_state(run_dir, NOW)) == "step 0 of 100 (0%), no checkpoint yet"
    (run_dir / "config.yaml").unlink()
    assert run_state(run_dir, NOW) is None


def test_only_the_end_of_a_long_record_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 9.0}\n' + '{"step": 2, "accuracy": 0.5}\n' * TAIL_BYTES)
    assert last_figures(path) == {}
    with path.open("a") as file:
        file.write('{"step": 3, "loss": 8.0}\n[1]\n')
    assert last_figures(path) == {"step": 3, "loss": 8.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


SQUEUE = """\
7|RUNNING|1:02|1-00:00:00|2|n[0-1]|headcount-run
8|PENDING|0:00|1-00:00:00|2|(Resources)|headcount-a|b
9|RUNNING|5:00|10:00|1|n3|something else
"""


def fake_slurm(directory, **outputs):
    """Stand-ins for Slurm's commands; an output of None is a failure."""
    directory.mkdir()
    for name, output in outputs.items():
        (directory / f"{name}.out").write_text(output or "")
        end = f"cat {directory}/{name}.out" if output is not None else "echo no accounting >&2; exit 1"
        (directory / name).write_text(f"#!/bin/sh\n{end}\n")
        (directory / name).chmod(0o755)
    return environment(PATH=f"{directory}:{os.environ['PATH']}")


def test_jobs_of_a_run_come_from_queue_and_accounting(run_dir, tmp_path):
    (run_dir / "slurm_jobs").write_text("5\n6\n7\n")
    accounts = "6|COMPLETED|03:00:00|1-00:00:00|2|0:0|headcount-run\n"
    env = fake_slurm(tmp_path / "bin", squeue=SQUEUE, sacct=accounts)
    done = headcount_here("launch", "status", run_dir, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["5", "UNKNOWN"], ["6", "COMPLETED"], ["7", "RUNNING"]]
    assert lines[4].startswith(f"{run_dir}: step 40 of 100")
    assert len(lines) == 5


def test_all_training_jobs_are_listed_each_with_its_run(run_dir, tmp_path):
    (run_dir / "slurm_jobs").write_text("7\n")
    shown = f"JobId=7 JobName=headcount-run StdOut={run_dir}/slurm-7.log Power="
    env = fake_slurm(tmp_path / "bin", squeue=SQUEUE, sacct=None, scontrol=shown)
    done = headcount_here("launch", "status", env=env)
    assert done.returncode == 0, done.stderr
    assert "headcount-a|b" in done.stdout
    assert "something else" not in done.stdout
    assert done.stdout.count(f"{run_dir}: step 40 of 100") == 1


def test_a_run_without_slurm_is_told_of_without_slurm(run_dir, tmp_path):
    done = headcount_here("launch", "status", run_dir, env=environment(PATH=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run_dir}: step 40 of 100")
    (run_dir / "slurm_jobs").write_text("5\n")
    elsewhere = headcount_here("launch", "status", run_dir, env=environment(PATH=str(tmp_path)))
    assert "5    UNKNOWN" in elsewhere.stdout, elsewhere.stderr
    assert "squeue is not on this machine" in elsewhere.stdout
    nothing = headcount_here("launch", "status", tmp_path, env=environment(PATH=str(tmp_path)))
    assert nothing.returncode == 2
    assert "no run has begun there" in nothing.stderr
    without = headcount_here("launch", "status", env=environment(PATH=str(tmp_path)))
    assert without.returncode == 2
    assert "squeue is not on this machine" in without.stderr


@pytest.mark.parametrize(
    "line",
    [
        '{"step": Infinity, "loss": 1}',
        '{"step": NaN, "loss": 1}',
        '{"step": ["a"], "loss": 1}',
        '{"step": "\\ud800", "loss": 1}',
        '{"step": 7, "loss": "\\ud800"}',
        '{"step": 7, "loss": {"a": 1}}',
        '{"step": 7, "loss": 1e999}',
        '{"step": 7, "loss": null}',
        '{"step": 7, "loss": 1, "images_per_s": {}}',
        '{"step": 7, "loss": 1, "images_per_s": 1e-320}',
        '{"step": 7, "loss": 1, "epoch": "\\ud800"}',
        '{"step": 7, "loss": 1, "epoch": 1e-320}',
        '{"step": 7, "loss": 1, "images_per_s": ' + "[" * 100_000,
        '{"step": 1' + "0" * 5000 + ', "loss": 1}',
        '{"step": -5, "loss": true, "epoch": -1}',
    ],
)
def test_figures_that_are_none_are_left_out_of_the_state(run_dir, line):
    write_recipe(run_dir / "config.yaml", run_dir / "set", run_dir, train__steps=None, train__epochs=2)
    (run_dir / "metrics.jsonl").write_text(line + "\n")
    text = str(run_state(run_dir, NOW))
    assert text.startswith("step ")
    assert "nan" not in text
    assert "inf" not in text


def test_a_list_of_jobs_that_is_damaged_names_the_jobs_that_are_left(run_dir):
    (run_dir / SLURM_JOBS_NAME).write_bytes(b"\xff\xfe --evil 17\n")
    assert [row[0] for row in jobs_of(run_dir)] == ["17"]
