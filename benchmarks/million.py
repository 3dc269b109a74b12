"""A million small pictures through `headcount prep align --keep`, killed ten times, then verified and trained on.

    python benchmarks/million.py                             # takes 13 GB of disk
    python benchmarks/million.py --pictures 20000 --kills 3  # a trial

The photos are files in a folder for each identity, 20 in each, of about 3 kB: some thousand drawn ones, each made
unique by a number behind its end. One job is left alone. The other is killed, the command alone or with all of its
workers in turn, at moments spread over the time that the first one took, and started again each time. One JSON line:
seconds of both, memory, files, and whether the sets are equal byte for byte, rejects included.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import yaml
from command import headcount
from line import print_line
from pictures import SIDE

from dist_train.data.manifest import load_manifest

DISTINCT, EACH, SEED = 4096, 20, 5
STEPS = 20  # of training on the set
REPORT = "report.png"  # says how long the job took


def write_photos(root: Path, pictures: int) -> None:
    """`pictures` files, `EACH` in a folder."""
    random_pixels = np.random.default_rng(SEED)
    made = []
    for _ in range(DISTINCT):
        coarse = random_pixels.normal(128, 60, (9, 9, 3)).clip(0, 255).astype(np.uint8)
        drawn = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        made.append(bytes(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]))
    for first in range(0, pictures, EACH):
        folder = root / f"{first // EACH:06d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + EACH, pictures)):
            (folder / f"{number:07d}.jpg").write_bytes(made[number % DISTINCT] + struct.pack("<Q", number))


class Memory:
    """The most private memory that a process and those it started had together, looked at five times a second."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            used = 0
            with contextlib.suppress(psutil.Error):  # one of them has just ended
                first = psutil.Process(self._pid)
                for each in (first, *first.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        memory = each.memory_info()
                        used += memory.rss - memory.shared
            self.peak_mb = max(self.peak_mb, round(used / 1e6))


def start(photos: Path, out: Path) -> subprocess.Popen[bytes]:
    """The job as a user starts it, in a process group of its own."""
    command = [str(Path(sys.executable).with_name("headcount")), "prep", "align", str(photos), str(out), "--keep"]
    return subprocess.Popen(
        [*command, "--image-size", str(SIDE)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(photos: Path, out: Path, kill_after: list[float]) -> tuple[float, int, int]:
    """The job to its end, started again after each kill.

    Args:
        photos: the folder.
        out: of the job.
        kill_after: seconds from each start to its kill.

    Returns:
        Seconds in all, the largest memory in MB, and how many kills met a job that was still at work.

    Raises:
        RuntimeError: it failed by itself.
    """
    begin, peak, killed = time.perf_counter(), 0, 0
    for number, seconds in enumerate([*kill_after, None]):
        job = start(photos, out)
        with Memory(job.pid) as memory:
            try:
                job.wait(seconds)
            except subprocess.TimeoutExpired:
                killed += 1
                if number % 2:
                    os.killpg(job.pid, signal.SIGKILL)
                else:
                    job.kill()  # its workers are left to find out by themselves
                job.wait()
        peak = max(peak, memory.peak_mb)
        if job.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the job ended with status {job.returncode}; run it by hand on {photos}")
        if job.returncode == 0:
            break
    return time.perf_counter() - begin, peak, killed


def digests(out: Path) -> Iterator[tuple[str, str]]:
    """Names and digests of what a job made, apart from its own notes and what says how long it took."""
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and not name.startswith(".prep") and name != REPORT:
            with path.open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()


def train(folder: Path, out: Path) -> float:
    """Seconds of a short training on the set, its start included."""
    recipe = {
        "run_dir": str(folder / "run"),
        "data": {"path": str(out), "image_size": 32, "workers": 1},
        "backbone": {"name": "nano", "embedding_dim": 64},
        "head": {"sample_rate": 0.1},
        "train": {"steps": STEPS, "global_batch_size": 256, "device": "cpu", "threads": 1},
        "track": {"wandb": "disabled"},
    }
    path = folder / "million.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    took = headcount("train", path).seconds
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    if summary["steps"] != STEPS:
        raise RuntimeError(f"{summary['steps']} steps of {STEPS} were made")
    return took


def measure(folder: Path, pictures: int, kills: int) -> dict[str, Any]:
    """Make, convert twice, compare, verify and train."""
    photos, alone, shot = folder / "photos", folder / "alone", folder / "shot"
    write_photos(photos, pictures)
    alone_s, alone_mb, _ = run(photos, alone, [])
    moments = random.Random(SEED)
    shot_s, shot_mb, killed = run(
        photos, shot, [moments.uniform(0.5, 1.5) * alone_s / (kills + 1) for _ in range(kills)]
    )
    expected, found = dict(digests(alone)), dict(digests(shot))
    samples = load_manifest(shot).samples
    shutil.rmtree(alone)
    verify_s = headcount("data", "verify", shot).seconds
    return {
        "ours": round(shot_s, 1),
        "baseline": round(alone_s, 1),
        "ratio": round(shot_s / alone_s, 2),
        "unit": "s",
        "kills": killed,
        "samples": samples,
        "files": len(found),
        "files_that_differ": sum(expected.get(name) != found.get(name) for name in expected.keys() | found.keys()),
        "peak_mb": max(alone_mb, shot_mb),
        "verify_s": round(verify_s, 1),
        "train_s": round(train(folder, shot), 1),
        "run": {"pictures": pictures, "identities": -(-pictures // EACH), "steps": STEPS, "baseline": "left alone"},
    }


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), options.pictures, options.kills)
    print_line({"benchmark": "million", "case": "keep"} | figures)


if __name__ == "__main__":
    main()
