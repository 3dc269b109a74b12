"""What the batch script does when its ranks end in one way or another; `srun` and `scontrol` are stand-ins."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from launch.slurm import SlurmJob

HANGS = "trap '' USR2\nwhile :; do sleep 0.05; done"
WRITES = "trap 'exit 130' USR2\nwhile :; do sleep 0.05; done"
BREAKS = "trap 'exit 1' USR2\nwhile :; do sleep 0.05; done"


class Script:
    """A job's script under way; `ranks` is what stands in for srun."""

    def __init__(self, directory, ranks, requeue=True, refused=False, checkpoint_age_s=None, signal_before_s=20):
        self.directory, programs = directory, directory / "bin"
        programs.mkdir()
        stop = "exit 1" if refused else "kill -9 0"  # Slurm ends the whole script
        for name, body in {
            "srun": f"touch {directory}/started\n{ranks}",
            "scontrol": f'echo "$@" > {directory}/scontrol\n{stop}',
        }.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n")
            (programs / name).chmod(0o755)
        if checkpoint_age_s is not None:
            written = directory / "run" / "checkpoints" / "step-00000004"
            written.mkdir(parents=True)
            os.utime(written, (time.time() - checkpoint_age_s,) * 2)
        job = SlurmJob(directory / "run", (2, 2), 0, 1, 1, signal_before_s, requeue=requeue, options=())
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "n[0-1]",
        }
        self.process = subprocess.Popen(
            ["bash", "-c", job.script(["train", "a.yaml"])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def send(self, number):
        """A signal to the script alone, once its ranks are there."""
        while not (self.directory / "started").exists():
            time.sleep(0.01)
        time.sleep(0.1)  # until the stand-in has set its traps
        self.process.send_signal(number)

    def end(self):
        """Exit status, the script's messages, and what it asked of scontrol."""
        try:
            messages = self.process.communicate(timeout=30)[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        asked = self.directory / "scontrol"
        return self.process.returncode, messages, asked.read_text().strip() if asked.exists() else ""


def test_ranks_that_reach_the_end_end_the_job(tmp_path):
    status, messages, asked = Script(tmp_path, "exit 0").end()
    assert (status, asked) == (0, "")
    assert "job 7, start 1: 2 nodes (n[0-1]), meeting at" in messages
    assert "ends with status 0" in messages


@pytest.mark.parametrize(
    ("ranks", "signal_before_s", "reason"),
    [
        (WRITES, 20, "stopped with a checkpoint"),
        (BREAKS, 20, "stopped without a checkpoint"),
        (HANGS, 2, "no checkpoint within 1 s"),
    ],
    ids=["checkpoint", "failure", "hang"],
)
def test_a_warned_job_is_queued_again_whatever_its_ranks_do(tmp_path, ranks, signal_before_s, reason):
    script = Script(tmp_path, ranks, signal_before_s=signal_before_s)
    script.send(signal.SIGUSR1)
    _, messages, asked = script.end()
    assert f"asked to stop, {signal_before_s} s are left" in messages
    assert f"{reason}; queued again" in messages
    assert asked == "requeue 7"


def test_a_second_warning_changes_nothing(tmp_path):
    script = Script(tmp_path, "n=0\ntrap 'n=$((n+1))' USR2\nfor i in {1..10}; do sleep 0.05; done; exit $((100+n))")
    script.send(signal.SIGUSR1)
    script.send(signal.SIGUSR1)
    _, messages, _ = script.end()
    assert messages.count("asked to stop") == 1


@pytest.mark.parametrize(("age_s", "again"), [(None, False), (1000, False), (-2, True)])
def test_a_lost_rank_is_tried_again_only_after_a_new_checkpoint(tmp_path, age_s, again):
    status, messages, asked = Script(tmp_path, "exit 137", checkpoint_age_s=age_s).end()
    assert asked == ("requeue 7" if again else "")
    assert ("a rank failed (status 137) after a checkpoint; queued again" in messages) is again
    assert ("ends with status 137" in messages) is not again
    assert again or status == 137


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path):
    status, messages, asked = Script(tmp_path, "exit 2", checkpoint_age_s=-2).end()
    assert (status, asked) == (2, "")
    assert "ends with status 2" in messages


def test_a_job_that_slurm_ends_is_not_queued_again(tmp_path):
    script = Script(tmp_path, "sleep 0.6; exit 130", checkpoint_age_s=-2)
    script.send(signal.SIGTERM)
    status, messages, asked = script.end()
    assert (status, asked) == (130, "")
    assert "ends with status 130" in messages


def test_without_requeue_a_warned_job_ends_after_its_checkpoint(tmp_path):
    script = Script(tmp_path, WRITES, requeue=False, checkpoint_age_s=-2)
    script.send(signal.SIGUSR1)
    status, messages, asked = script.end()
    assert (status, asked) == (130, "")
    assert "queued again" not in messages


def test_a_requeue_that_slurm_refuses_says_what_to_do(tmp_path):
    script = Script(tmp_path, WRITES, refused=True, signal_before_s=4)
    script.send(signal.SIGUSR1)
    status, messages, _ = script.end()
    assert status == 130
    assert "scontrol could not queue it again; do so with the same command and --resume" in messages
