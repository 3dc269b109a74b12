"""What reading, decoding and augmenting costs, and what large sets cost to open.

    python benchmarks/data.py                 # all cases
    python benchmarks/data.py --case core

One JSON line a case. `core` is the command `headcount data bench`; the others are parts of it, or what no command
says. Pictures are 112x112 JPEGs of about 8 kB, as aligned faces are; flip, rotation by 10 degrees and
colour jitter of 0.2 included. Large sets are one shard under many names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from command import headcount
from line import print_line
from pictures import SIDE, jpeg

from data_prep.shards import ShardWriter, write_set
from dist_train.data.assemble import BatchPlan
from dist_train.data.bench import USUAL
from dist_train.data.config import DataConfig
from dist_train.data.manifest import Manifest, Shard
from dist_train.data.order import WindowShuffle
from dist_train.data.pool import WorkerPool
from dist_train.data.sources import open_sources

SAMPLES, BATCH, SECONDS = 4096, 256, 6.0


def write_pictures(directory: Path, samples: int) -> Shard:
    """A set of one shard with `samples` pictures of 64 classes."""
    with ShardWriter(directory / "bench-000000.tar") as writer:
        for number in range(samples):
            writer.write(f"{number:08d}", jpeg(number), number % 64)
    write_set(directory, SIDE, [str(i) for i in range(64)], [samples // 64] * 64, [writer.shard])
    return writer.shard


def pil_torchvision(on_tensors: bool, seconds: float) -> float:
    """The baseline on one core: PIL decodes, torchvision v2 flips, jitters, rotates and normalises.

    Args:
        on_tensors: change uint8 tensors, as torchvision's documentation advises; else PIL's own pictures.
        seconds: time to take.
    """
    import io

    import torch
    from PIL import Image
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    changes = [
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
    ]
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    steps = [v2.ToImage(), *changes] if on_tensors else [*changes, v2.PILToTensor()]
    pipeline = v2.Compose([*steps, *normalise])
    pictures = [jpeg(number) for number in range(256)]
    rates = []
    for _ in range(5):
        begin, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds / 5:
            pipeline(Image.open(io.BytesIO(pictures[count % 256])).convert("RGB"))
            count += 1
        rates.append(count / passed)
    return max(rates)


def core(case: str) -> None:
    """One core: ours, beside PIL with torchvision and beside decoding alone."""
    with tempfile.TemporaryDirectory() as name:
        shard = write_pictures(Path(name), SAMPLES)
        told = headcount("data", "bench", name, "--workers", "0", "--backend", "opencv", "--seconds", str(SECONDS))
        alone, ours = (float(line.split()[-2].replace(",", "")) for line in told.output.splitlines()[1:3])
        baseline, on_pil = pil_torchvision(True, SECONDS), pil_torchvision(False, SECONDS)
    emit(
        case,
        round(ours),
        round(baseline),
        "images/s",
        ratio=round(ours / baseline, 2),
        baseline_on_pil_pictures=round(on_pil),
        decode_only=round(alone),
        of_decode_only=round(ours / alone, 3),
        run={
            "jpeg_bytes": shard.bytes // SAMPLES,
            "side_px": SIDE,
            "baseline": "torchvision v2, uint8 tensors",
        },
    )


def workers(case: str) -> None:
    """Two worker processes beside one, up to the uint8 batches in shared memory; the device does the rest."""
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        write_pictures(Path(name), SAMPLES)
        config = DataConfig(path=name, augment=USUAL)
        plan = BatchPlan(open_sources(config).sets, config, 0, BATCH, SIDE)
        for count in (1, 2):
            pool = WorkerPool(plan, BATCH, count, 4, 60.0)
            for step in range(4):
                pool.submit(step * BATCH)
            rates[count] = max(stretch(pool, SECONDS / 5) for _ in range(6))
            pool.close()
    emit(
        case,
        round(rates[2]),
        round(rates[1]),
        "images/s",
        ratio=round(rates[2] / rates[1], 3),
        run={"workers": [2, 1], "baseline": "one worker"},
    )


def stretch(pool: WorkerPool, seconds: float) -> float:
    """Pictures a second out of a pool that always has four batches to make."""
    begin, images, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        first = int(pool.collect().positions[0])
        pool.submit(first + 4 * BATCH)
        images += BATCH
        passed = time.perf_counter() - begin
    return images / passed


def opening(case: str, shards: int, per_shard: int) -> None:
    """Open a set of many shards in a fresh process, first batch included: seconds and memory it took."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shard = write_pictures(directory, per_shard)
        source = directory / shard.name
        entries = []
        for number in range(shards):
            copy = directory / f"many-{number:06d}.tar"
            os.link(source, copy)
            os.link(source.with_suffix(".idx"), copy.with_suffix(".idx"))
            entries.append(Shard(copy.name, per_shard, shard.bytes, shard.sha256))
        Manifest(SIDE, 64, tuple(entries)).save(directory)
        told = subprocess.run(
            [sys.executable, __file__, "--open", name], check=True, capture_output=True, text=True
        ).stdout
    found = json.loads(told)
    emit(
        case,
        found["seconds"],
        None,
        "s",
        memory_added_mb=found["added_mb"],
        process_private_mb=found["process_mb"],
        run={"samples": shards * per_shard, "shards": shards, "batch": BATCH, "first_batch": "included"},
    )


def open_set(path: str) -> None:
    """In a process of its own: open a set, make one batch, print what it took."""
    from dist_train.data.loader import build_loader

    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    with build_loader(DataConfig(path=path, augment=USUAL, workers=0), BATCH, 0, 1, seed=0) as loader:
        next(loader)
        seconds = time.perf_counter() - begin
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        status = dict(line.split(":", 1) for line in lines)
        peak, libraries = (int(status[name].split()[0]) for name in ("VmHWM", "RssFile"))
    print(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "added_mb": round(peak * 1024 / 1e6 - before / 1e6),
                "process_mb": round((peak - libraries) * 1024 / 1e6),
            }
        )
    )


def shuffle(case: str) -> None:
    """How far samples travel and how well batches are mixed, beside a full shuffle; stored sorted by class."""
    shards, per_shard, per_class, batch = 290, 10_000, 33, 512
    total = shards * per_shard
    plan = WindowShuffle([per_shard] * shards, 16, seed=1)
    shard, sample = plan.locate(0, np.arange(total, dtype=np.int64))
    stored = shard * per_shard + sample
    full = np.random.default_rng(0).permutation(total)
    figures = {}
    for name, order in (("window", stored), ("full", full)):
        batches = (order[: total - total % batch] // per_class).reshape(-1, batch)
        distinct = np.mean([len(np.unique(row)) for row in batches[::20]])
        figures[name] = {
            "mean_travel": round(float(np.abs(order - np.arange(total)).mean() / total), 4),
            "classes_in_a_batch": round(float(distinct), 1),
        }
    emit(
        case,
        figures["window"]["mean_travel"],
        figures["full"]["mean_travel"],
        "share of the set",
        **figures,
        run={"samples": total, "window_shards": 16, "shard_samples": per_shard, "batch": batch},
    )


def emit(case: str, ours: float, baseline: float | None, unit: str, **more: Any) -> None:
    """Print a case's line."""
    line = {"benchmark": "data", "case": case, "ours": ours, "baseline": baseline, "unit": unit}
    print_line(line | more)


CASES: dict[str, Callable[[str], None]] = {
    "core": core,
    "workers": workers,
    "open_2.9m": lambda case: opening(case, 290, 10_000),
    "open_100m": lambda case: opening(case, 20_000, 5_000),
    "shuffle": shuffle,
}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--open", metavar="SET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_set(options.open)
        return
    for name in [options.case] if options.case else CASES:
        CASES[name](name)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
