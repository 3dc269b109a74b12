"""Steps of real training on the device and on the CPU: losses, half precision, a checkpoint that goes on on either."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.program import opened, plain_products, recipe
from dist_train.checkpoint.store import committed_checkpoints

STEPS = 5
CPU = torch.device("cpu")
FLOAT32_OFF = 2e-3  # of a loss: convolutions add up in other orders, and steps carry it on
# First steps of a network multiply a difference by hundreds: two CPUs were 2 % apart after four. So the first loss is
# judged, and the second, which one update has made.
FIRST_OFF, SECOND_OFF = 2e-5, 5e-3
HALF_OFF, HALF_STEPS = (
    5e-2,
    2,
)  # steps carry the rounding on, so the first ones are judged: a third was 6 % off on Zen 4


def run(bench: Bench) -> None:
    """Compare the losses."""
    torch.backends.cudnn.allow_tf32 = False
    size = {"image_size": 32} if bench.small else {"image_size": 112}
    backbone = {"name": "nano", "embedding_dim": 16} if bench.small else {"name": "mobilefacenet", "embedding_dim": 128}
    batch = 8 if bench.small else 32
    sizes = {"global_batch_size": batch, "micro_batch_size": batch}
    sections: dict[str, Any] = {"data": size, "backbone": backbone, "train": sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain: list[float] = []
        with bench.case("float32 beside the CPU"):
            exact = sections | {"head": plain_products({}), "train": sizes | {"precision": "float32"}}
            near = losses(folder, bench.device, exact, save=True)
            plain = losses(folder, CPU, exact)
            first, second = furthest(near[:1], plain[:1]), furthest(near[1:2], plain[1:2])
            ok = first < FIRST_OFF and second < SECOND_OFF
            bench.line("float32 beside the CPU", ok=ok, first_off=first, second_off=second, losses=near, cpu=plain)
            for where in (bench.device, CPU):
                case = f"resumed on {where.type}"
                with bench.case(case):
                    again = losses(folder, where, exact, resume=True)
                    off = furthest(again, near[STEPS:])
                    bench.line(case, ok=off < FLOAT32_OFF, off=off, losses=again, unbroken=near[STEPS:])
        forms: dict[str, dict[str, Any]] = {
            "bfloat16": {},
            "bfloat16, half of the classes": {"head": {"sample_rate": 0.5}},
            "bfloat16 rows on the host": {"head": {"dtype": "bfloat16", "storage": "host"}},
            "bfloat16, moving average, AdamW": {
                "optimizer": {"name": "adamw", "lr": 0.001},
                "train": {"ema_decay": 0.9},
            },
        }
        for case, more in forms.items():
            with bench.case(case):
                train = {"train": sizes | {"precision": "bfloat16"} | more.get("train", {})}
                found = losses(folder, bench.device, sections | more | train)
                beside = more.keys() <= {"train"}  # the others are other trainings
                off = furthest(found[:HALF_STEPS], plain[:HALF_STEPS]) if beside and plain else None
                ok = all(map(math.isfinite, found)) and (off is None or off < HALF_OFF)
                bench.line(case, ok=ok, losses=found, **({} if off is None else {"off": off}))


def furthest(found: list[float], expected: list[float]) -> float:
    """Largest relative difference of two lists of losses; infinite where they are not as many, or one is not finite."""
    if len(found) != len(expected) or not found or not all(map(math.isfinite, found)):
        return math.inf
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def losses(
    folder: Path, device: torch.device, sections: dict[str, Any], save: bool = False, resume: bool = False
) -> list[float]:
    """Losses of the steps 0 to 6, with a checkpoint after five of them if `save`; or those after it if `resume`."""
    config = recipe(folder, **sections)
    checkpoint = committed_checkpoints(config.run_dir)[-1] if resume else None
    if not resume and save:
        shutil.rmtree(config.run_dir, ignore_errors=True)
    found = []
    with opened(config, device, checkpoint) as loop:
        while loop.step < STEPS + 2:
            found.append(float(loop.train_step(loop.next_batch())))
            if save and loop.step == STEPS:
                loop.save()
                loop.checkpointer.wait()
    return found
