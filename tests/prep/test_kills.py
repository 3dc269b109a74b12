"""`kill -9` of the whole job and of its workers, at random moments.

A few kills in the usual run of the tests; as many as are wanted by `HEADCOUNT_KILLS=500 pytest tests/prep/test_kills.py
--timeout 0`, and other moments by `HEADCOUNT_SEED`.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.prep.jobs import content, messy, options, run

KILLS = int(os.environ.get("HEADCOUNT_KILLS", "8"))
SEED = int(os.environ.get("HEADCOUNT_SEED", "11"))
KILLS_OF_A_JOB = 8
CHILD = """
import sys
from pathlib import Path
from data_prep.engines.local import LocalEngine
from tests.prep.jobs import options, run
from tests.prep.standin import Upper

if __name__ == "__main__":
    run(Path(sys.argv[2]), options(Path(sys.argv[1]), Upper(pause_s=0.004)), LocalEngine(2), tries=1000)
"""


class Marks:
    """The marks of completion of a job's units and shards: one that is there is never written again."""

    def __init__(self, out: Path):
        self._home = out / ".prep"
        self._seen: dict[str, int] = {}

    def look(self) -> int:
        for mark in self._home.glob("[us]*/*.json"):
            written = mark.stat().st_mtime_ns
            assert self._seen.setdefault(str(mark), written) == written, f"{mark} was made twice"
        return len(self._seen)


def wait_for_a_moment(job: subprocess.Popen, marks: Marks, moments: random.Random) -> None:
    """Some time after its start, or just after its next units ended: where it renames, or goes from stage to stage."""
    if moments.random() < 0.3:
        time.sleep(moments.uniform(0.0, 1.5))
        return
    goal = marks.look() + moments.randint(1, 3)
    while job.poll() is None and marks.look() < goal:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.06))


def kill_something(job: subprocess.Popen, moments: random.Random) -> None:
    """A worker, if there is one just now and the coin says so, else the whole job."""
    workers = []
    with contextlib.suppress(psutil.Error):  # it, or one of them, has just ended
        workers = [child for child in psutil.Process(job.pid).children() if "local_worker" in " ".join(child.cmdline())]
    if workers and moments.random() < 0.5:
        with contextlib.suppress(psutil.Error):
            moments.choice(workers).kill()
    else:
        job.send_signal(signal.SIGKILL)  # its workers are left to find out by themselves
        job.wait()


def finish_under_fire(root: Path, out: Path, script: Path, kills: int, moments: random.Random) -> int:
    """Start a job again and again until it is done; how often something was killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    marks, killed = Marks(out), 0
    while True:
        job = subprocess.Popen([sys.executable, script, root, out], env=environment, stderr=subprocess.PIPE, text=True)
        while killed < kills and job.poll() is None:
            wait_for_a_moment(job, marks, moments)
            if job.poll() is None:
                kill_something(job, moments)
                killed += 1
        _, errors = job.communicate(timeout=120)
        marks.look()
        if job.returncode != -signal.SIGKILL:
            assert job.returncode == 0, errors
            return killed


def test_kills_of_job_and_workers_at_random_moments_lose_and_repeat_nothing(tmp_path):
    root = messy(tmp_path / "photos")
    run(tmp_path / "unbroken", options(root))
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    moments, killed = random.Random(SEED), 0
    for number in range(-(-KILLS // KILLS_OF_A_JOB)):
        out = tmp_path / f"out-{number}"
        killed += finish_under_fire(root, out, script, KILLS_OF_A_JOB, moments)
        assert content(out) == content(tmp_path / "unbroken")
    assert killed > 0
