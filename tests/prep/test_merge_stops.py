"""`kill -9` of a merge: what was done stays, and the same command ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.prep.merging import content, made, merge

# The command, in no hurry between a shard and its mark.
SLOW = """
import time
from data_prep.merge import move
from launch.__main__ import main
def slowly(path, body):
    time.sleep(0.1)
    at_once(path, body)
at_once, move.write_json = move.write_json, slowly
main()
"""


def done(out: Path) -> dict[str, int]:
    """When each shard that has a mark was written."""
    shards = [out / f"x-{mark.stem}.tar" for mark in out.glob(".prep/shards/*.json")]
    return {shard.name: shard.stat().st_mtime_ns for shard in shards}


def test_a_merge_that_was_killed_ends_with_the_same_bytes_and_writes_no_shard_twice(tmp_path):
    a, b, out = made(tmp_path / "a", ["ann"]), made(tmp_path / "b", ["ann", "bo"], seed=9, shards=6), tmp_path / "out"
    merge(a, b, tmp_path / "unbroken", "--identities", "same-name")
    words = ["prep", "merge", a, b, out, "--identities", "same-name", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    job = subprocess.Popen([sys.executable, "-c", SLOW, *words], stderr=subprocess.PIPE, text=True, env=environment)
    while job.poll() is None and len(done(out)) < 4:
        time.sleep(0.005)
    job.kill()
    assert job.wait() == -signal.SIGKILL, job.communicate()[1]
    first = done(out)
    assert not (out / "manifest.json").exists()
    merge(a, b, out, "--identities", "same-name")
    assert content(out) == content(tmp_path / "unbroken")
    assert first.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
