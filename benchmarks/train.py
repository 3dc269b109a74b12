"""Whole training steps: beside their parts alone, on two ranks beside one, and with checkpoints.

    python benchmarks/train.py                    # all cases
    python benchmarks/train.py --case checkpoint --classes 10000 --steps 10    # a small trial

One JSON line a case. 112x112 JPEGs, the `tiny` backbone, D = 512, 64 pictures a rank and step, one thread a rank.
`parts` and `two_ranks` compare what runs in turns, so that a change of the machine's speed meets both alike.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.multiprocessing as mp
from line import print_line
from pictures import SIDE, jpeg

from data_prep.shards import ShardWriter, write_set
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import RunConfig
from dist_train.runtime.ranks import Ranks, join_ranks, leave_ranks
from dist_train.train.build import open_training
from dist_train.train.loop import Loop
from dist_train.train.recognition import Recognition

BATCH, PICTURES, ROUNDS = 64, 1024, 3


@dataclass(frozen=True)
class Sizes:
    """What a case runs with."""

    classes: int
    steps: int


def write_pictures(directory: Path, classes: int) -> None:
    """A set of few pictures whose labels lie all over many classes."""
    with ShardWriter(directory / "bench-000000.tar") as writer:
        for number in range(PICTURES):
            writer.write(f"{number:08d}", jpeg(number), number * classes // PICTURES)
    counts = [0] * classes
    for number in range(PICTURES):
        counts[number * classes // PICTURES] += 1
    write_set(directory, SIDE, [str(number) for number in range(classes)], counts, [writer.shard])


def recipe(folder: Path, world_size: int, workers: int, **checkpoint: Any) -> RunConfig:
    """The configuration of a run in `folder`."""
    return RunConfig.model_validate(
        {
            "run_dir": folder / "run",
            "data": {"path": str(folder / "set"), "workers": workers},
            "backbone": {"name": "tiny", "embedding_dim": 512},
            "head": {"sample_rate": 0.1},
            "train": {
                "steps": 1_000_000,
                "global_batch_size": BATCH * world_size,
                "micro_batch_size": BATCH,
                "device": "cpu",
                "threads": 1,
            },
            "checkpoint": {"every_steps": 1_000_000} | checkpoint,
            "track": {"wandb": "disabled"},
        }
    )


def steps_of(loop: Loop, steps: int) -> list[float]:
    """Seconds of each of the next steps of training, as `Loop.fit` makes them."""
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        loop.meter.add(loop.train_step(next(loop.loader)))
        loop.checkpointer.commit_if_written()
        times.append(time.perf_counter() - begin)
    return times


def parts(case: str, sizes: Sizes) -> None:
    """Training beside the slowest of data, backbone and head alone, in turns; a data worker has the other core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "set", sizes.classes)
        config = recipe(folder, 1, workers=1)
        config.run_dir.mkdir()
        ranks = join_ranks("cpu", 1)
        loop = open_training(config, ranks)
        steps_of(loop, 3)
        batch = next(loop.loader)
        program = cast(Recognition, loop.program)
        embeddings = program.replica.embed(batch.images).detach()

        def backbone() -> None:
            program.replica.backward(program.replica.embed(batch.images), torch.ones_like(embeddings) / BATCH)
            program.replica.step(1e-9)

        def head() -> None:
            border = embeddings.clone().requires_grad_()
            program.head(border, batch).backward()
            program.head.step(1e-9)

        works: dict[str, Callable[[], Any]] = {
            "training": lambda: steps_of(loop, 1),
            "data": lambda: next(loop.loader),
            "backbone": backbone,
            "head": head,
        }
        rates: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(ROUNDS):
            for what, work in works.items():
                if what == "data":  # what training left ready does not count
                    for _ in range(config.data.prefetch + 1):
                        work()
                begin = time.perf_counter()
                for _ in range(sizes.steps):
                    work()
                rates[what].append(sizes.steps * BATCH / (time.perf_counter() - begin))
        found = {what: statistics.median(values) for what, values in rates.items()}
        loop.close()
    ours = found.pop("training")
    least = min(found, key=lambda what: found[what])
    # The backbone and the head work one after the other, so this is all that can be had of one core.
    chain = 1 / (1 / found["backbone"] + 1 / found["head"])
    emit(
        case,
        round(ours, 1),
        round(found[least], 1),
        "images/s",
        ratio=round(ours / found[least], 3),
        smallest=least,
        alone={what: round(rate, 1) for what, rate in found.items()},
        of_backbone_then_head=round(ours / chain, 3),
        run={"classes": sizes.classes, "sample_rate": 0.1, "batch": BATCH, "steps": sizes.steps, "workers": 1},
    )


def speed_of_rank(rank: int, world_size: int, port: int, folder: Path, steps: int) -> None:
    """In a process of its own, on a core of its own: the median seconds of a step, into a file."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size), ("MASTER_PORT", port)):
        os.environ[name] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(world_size)}
    ranks = join_ranks("cpu", 1)
    loop = open_training(recipe(folder, world_size, workers=0), ranks)
    steps_of(loop, 2)
    ranks.barrier()
    times = steps_of(loop, steps)
    loop.close()
    if rank == 0:
        (folder / f"{world_size}.json").write_text(json.dumps(statistics.median(times)), encoding="utf-8")
    leave_ranks(ranks)


def two_ranks(case: str, sizes: Sizes) -> None:
    """Images a second of two ranks beside one, each with 64 pictures a step and a core."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "set", sizes.classes)
        (folder / "run").mkdir()
        for _ in range(ROUNDS):
            for world_size in rates:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                mp.spawn(speed_of_rank, (world_size, port, folder, sizes.steps), nprocs=world_size)
                seconds = json.loads((folder / f"{world_size}.json").read_text(encoding="utf-8"))
                rates[world_size].append(world_size * BATCH / seconds)
    one, two = (statistics.median(values) for values in rates.values())
    emit(
        case,
        round(two, 1),
        round(one, 1),
        "images/s",
        ratio=round(two / one, 3),
        run={
            "classes": sizes.classes,
            "sample_rate": 0.1,
            "batch_per_rank": BATCH,
            "steps": sizes.steps,
            "ranks": [2, 1],
        },
    )


def checkpoint(case: str, sizes: Sizes) -> None:
    """What a checkpoint every 100 steps costs, as a share of them; seconds from a new process to its first step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "set", sizes.classes)
        config = recipe(folder, 1, workers=0)
        config.run_dir.mkdir()
        loop = open_training(config, join_ranks("cpu", 1))
        steps_of(loop, 2)
        plain = steps_of(loop, sizes.steps)
        loop.save()  # the first one makes the buffers that later ones use again
        loop.checkpointer.wait()
        steps_of(loop, 1)
        begin = time.perf_counter()
        loop.save()
        blocked_s = time.perf_counter() - begin
        written = []
        while loop.checkpointer.writing:
            written += steps_of(loop, 1)
        step_s = statistics.median(plain)
        slowed_s = sum(written) - step_s * len(written)
        loop.close()
        newest = committed_checkpoints(config.run_dir)[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
        del loop
        begin = time.perf_counter()
        told = subprocess.run(
            [sys.executable, __file__, "--resume", name], check=True, capture_output=True, text=True, env=os.environ
        ).stdout
        resumed_s = time.perf_counter() - begin
    emit(
        case,
        round((blocked_s + slowed_s) / (100 * step_s), 4),
        None,
        "share of 100 steps",
        step_s=round(step_s, 3),
        blocked_s=round(blocked_s, 3),
        slowed_by_writing_s=round(slowed_s, 3),
        steps_while_writing=len(written),
        checkpoint_mb=round(size / 1e6),
        resume_to_first_step_s=round(resumed_s, 1),
        resume_in_trainer_s=round(json.loads(told), 1),
        run={"classes": sizes.classes, "sample_rate": 0.1, "batch": BATCH, "steps": sizes.steps, "ranks": 1},
    )


def resume(name: str) -> None:
    """In a process of its own: go on from the newest checkpoint by one step, and print the seconds without imports."""
    from dist_train.checkpoint.load import newest_sound_checkpoint

    begin = time.perf_counter()
    config = recipe(Path(name), 1, workers=0)
    ranks: Ranks = join_ranks("cpu", 1)
    loop = open_training(config, ranks, newest_sound_checkpoint(config.run_dir, ranks))
    steps_of(loop, 1)
    print(json.dumps(time.perf_counter() - begin))
    loop.close()


def emit(case: str, ours: float, baseline: float | None, unit: str, **more: Any) -> None:
    """Print a case's line."""
    line = {"benchmark": "train", "case": case, "ours": ours, "baseline": baseline, "unit": unit}
    print_line(line | more)


CASES: dict[str, tuple[Callable[[str, Sizes], None], Sizes]] = {
    "parts": (parts, Sizes(100_000, 15)),
    "two_ranks": (two_ranks, Sizes(100_000, 15)),
    "checkpoint": (checkpoint, Sizes(1_000_000, 15)),
}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--classes", type=int, help="for a trial: other than the case has")
    parser.add_argument("--steps", type=int, help="for a trial: steps of a measurement")
    parser.add_argument("--resume", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resume:
        resume(options.resume)
        return
    for name in [options.case] if options.case else CASES:
        run, sizes = CASES[name]
        run(name, Sizes(options.classes or sizes.classes, options.steps or sizes.steps))


if __name__ == "__main__":
    main()
