"""Starting from another run beside going on with it: seconds until training could begin, and memory.

    python benchmarks/start.py                    # all cases
    python benchmarks/start.py --case rows --classes 20000 --rounds 1    # a small trial

One JSON line a case and number of ranks. `rows`: a run of 1 million identities, D = 512, sgd with momentum, starts from
another whose identities have their labels in another order; the baseline resumes that other run. Both are timed in
turns, each in new processes after their imports, with the checking of the checkpoint's files and the join of names.
`glyphs` (after `make benchmark`'s set) and `faces` (LFW in lfw-deepfunneled.tar, its lists in lfw-meta/): runs by the
command that start from a run, beside runs from nothing; see benchmarks/grow.py.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.multiprocessing as mp
from grow import faces, glyphs
from line import print_line
from train import recipe, write_pictures

from data_prep.shards import write_identities
from dist_train.checkpoint.load import newest_sound_checkpoint
from dist_train.config import RunConfig
from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.train.build import open_training
from dist_train.train.run_dir import claim_run_dir


@dataclass(frozen=True)
class Sizes:
    """What a case runs with."""

    classes: int
    rounds: int


def of_rank(rank: int, world_size: int, port: int, folder: Path, what: str) -> None:
    """In a process of its own: make a run, resume it, or start another from it; seconds and peak memory into a file."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size), ("MASTER_PORT", port)):
        os.environ[name] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(world_size)}
    ranks = join_ranks("cpu", 1)
    first = recipe(folder, world_size, workers=0)
    config = started(folder, first) if what == "start" else first
    ranks.barrier()
    begin = time.perf_counter()
    loop = open_training(config, ranks, newest_sound_checkpoint(config.run_dir, ranks))
    ranks.barrier()
    seconds = time.perf_counter() - begin
    if what == "make":
        if rank == 0:
            claim_run_dir(config)
        loop.meter.add(loop.train_step(next(loop.loader)))
        loop.step = 1
        loop.save()
        loop.checkpointer.wait()
    loop.close()
    found = {"seconds": seconds, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    (folder / f"{what}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_ranks(ranks)


def started(folder: Path, first: RunConfig) -> RunConfig:
    """The recipe of a run that starts from the run of `first`, on its identities under other labels."""
    start = first.start.model_copy(update={"head": first.run_dir})
    data = first.data.model_copy(update={"path": str(folder / "reordered")})
    return first.model_copy(update={"run_dir": folder / "started", "data": data, "start": start})


def in_ranks(world_size: int, folder: Path, what: str) -> tuple[float, float]:
    """Seconds of the first rank, and the largest peak memory of a rank in MB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(of_rank, (world_size, port, folder, what), nprocs=world_size)
    found = [json.loads((folder / f"{what}-{rank}.json").read_text(encoding="utf-8")) for rank in range(world_size)]
    return found[0]["seconds"], max(each["peak_rss_mb"] for each in found)


def rows(case: str, sizes: Sizes) -> None:
    """A head that starts from another run's rows, beside a head that is resumed; on one rank and on two."""
    for world_size in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_pictures(folder / "set", sizes.classes)
            shutil.copytree(folder / "set", folder / "reordered")
            names = np.random.default_rng(0).permutation(sizes.classes).astype(str).tolist()
            write_identities(folder / "reordered", names, [1] * sizes.classes)
            for run_dir in ("run", "started"):
                (folder / run_dir).mkdir()
            in_ranks(world_size, folder, "make")
            rounds: dict[str, list[tuple[float, float]]] = {"start": [], "resume": []}
            for _ in range(sizes.rounds):
                for what, found in rounds.items():
                    found.append(in_ranks(world_size, folder, what))
        seconds = {what: statistics.median(each for each, _ in found) for what, found in rounds.items()}
        peaks = {what: round(max(each for _, each in found)) for what, found in rounds.items()}
        emit(
            f"{case}_{world_size}_rank" + "s" * (world_size > 1),
            round(seconds["start"], 2),
            round(seconds["resume"], 2),
            "s",
            ratio=round(seconds["resume"] / seconds["start"], 3),
            peak_rss_mb=peaks["start"],
            baseline_peak_rss_mb=peaks["resume"],
            run={"classes": sizes.classes, "dim": 512, "optimizer": "sgd", "ranks": world_size, "rounds": sizes.rounds},
        )


def emit(case: str, ours: float, baseline: float | None, unit: str, **more: Any) -> None:
    """Print a case's line."""
    line = {"benchmark": "start", "case": case, "ours": ours, "baseline": baseline, "unit": unit}
    print_line(line | more)


CASES: dict[str, tuple[Callable[[str, Sizes], None], Sizes]] = {
    "rows": (rows, Sizes(1_000_000, 3)),
    "glyphs": (lambda case, _: glyphs(case), Sizes(20_000, 1)),
    "faces": (lambda case, _: faces(case), Sizes(1_183, 1)),
}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--classes", type=int, help="for a trial: other than the case has")
    parser.add_argument("--rounds", type=int, help="for a trial: measurements of each kind")
    options = parser.parse_args()
    for name in [options.case] if options.case else CASES:
        run, sizes = CASES[name]
        run(name, Sizes(options.classes or sizes.classes, options.rounds or sizes.rounds))


if __name__ == "__main__":
    main()
