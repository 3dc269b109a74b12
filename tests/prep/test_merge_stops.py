"""`kill -9` of a merge: what was done stays, and the same command ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.prep.merging import content, made, merge


def killed(out: Path, *arguments: object) -> None:
    """Start a merge into `out` with two workers, and kill it once a few shards are done; its workers end by themselves."""
    job = subprocess.Popen(
        [sys.executable, "-m", "launch", "prep", "merge", *map(str, arguments), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    while job.poll() is None and len(done(out)) < 5:
        time.sleep(0.002)
    job.kill()
    said = job.communicate(timeout=120)[1]  # at its end the workers have ended, too: they have its standard error
    assert job.returncode == -signal.SIGKILL, said


def done(out: Path) -> dict[str, int]:
    """When each shard that has a mark was written."""
    shards = [out / f"x-{mark.stem}.tar" for mark in out.glob(".prep/shards/*.json")]
    return {shard.name: shard.stat().st_mtime_ns for shard in shards}


def test_a_merge_that_was_killed_ends_with_the_same_bytes_and_writes_no_shard_twice(tmp_path):
    a, b, out = made(tmp_path / "a", ["ann"]), made(tmp_path / "b", ["ann", "bo"], 40, 9, shards=80), tmp_path / "out"
    merge(a, b, tmp_path / "unbroken", "--identities", "same-name")
    killed(out, a, b, out, "--identities", "same-name")
    first = done(out)
    assert not (out / "manifest.json").exists()
    merge(a, b, out, "--identities", "same-name")
    assert content(out) == content(tmp_path / "unbroken")
    assert first.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
