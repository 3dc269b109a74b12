"""What objectives, phases, transformers and pre-training cost and bring.

    python benchmarks/objectives.py --case cost
    python benchmarks/objectives.py --case distill    # runs on the glyph set, see benchmarks/studies.py
    python benchmarks/objectives.py --case cost --batch 32 --classes 1000 --steps 2    # a small trial

One JSON line for each objective of a case. `cost`: seconds of a whole step with the head alone, and of what the
objective adds to it: its value, its gradient and its update, measured by itself, in turns with the step. A difference
of two whole steps would drown in the noise of the machine. 112x112 pictures, four of each identity, one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from line import print_line
from pictures import SIDE
from studies import SEEDS, How, compatible, study
from study_tables import STUDIES

from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.data.loader import Loader
from dist_train.objectives.build import build_objectives
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Objective
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.ranks import ALONE
from dist_train.track.stopwatch import Stopwatch
from dist_train.train.build import Setting, build_recognition

PER_CLASS, WIDTH = 4, 512
COSTS: dict[str, dict[str, Any]] = {
    "triplet, semi-hard": {"triplet": {}},
    "triplet, batch-hard": {"triplet": {"mining": "batch_hard"}},
    "supcon": {"supcon": {}},
    "center, own": {"center": {}},
    "center, head": {"center": {"centers": "head"}},
    "sample_to_sample": {"sample_to_sample": {}},
}


@dataclass(frozen=True)
class Sizes:
    """What a case runs with."""

    batch: int
    classes: int
    steps: int


def recipe(objectives: dict[str, Any], batch: int) -> RunConfig:
    """The recipe of a step with these objectives; its paths are not touched."""
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "data": {"path": "unused", "images_per_class": PER_CLASS},
            "backbone": {"name": "tiny", "embedding_dim": WIDTH},
            "head": {"sample_rate": 0.1},
            "objectives": objectives,
            "train": {"steps": 1_000_000, "global_batch_size": batch, "device": "cpu", "threads": 1},
        }
    )


def cost(case: str, sizes: Sizes) -> None:
    """A step with each objective beside one with none; `ratio` is below 1 by what the objective costs."""
    torch.set_num_threads(1)
    labels = torch.arange(sizes.batch) // PER_CLASS * (sizes.classes * PER_CLASS // sizes.batch)
    images = torch.randn(sizes.batch, 3, SIDE, SIDE)
    batch = Batch(images, labels, torch.arange(sizes.batch), labels, torch.zeros_like(labels))
    loader = cast(Loader, SimpleNamespace(image_size=SIDE, manifest=SimpleNamespace(num_classes=sizes.classes)))
    gathering = Gathering(ALONE)
    with ExitStack() as opened:
        plain, watch = recipe({}, sizes.batch), Stopwatch(ALONE.device)
        program = build_recognition(Setting(plain, ALONE, loader, 1, watch, step=0, resumes=False, started={}))
        opened.callback(program.close)
        with torch.no_grad():
            embeddings = program.replica.embed(images)

        def step() -> None:
            program.begin()
            program.micro_step(batch, last=True)
            program.update(1e-3, measure=False)

        def alone(term: Objective) -> None:
            border = embeddings.clone().requires_grad_()
            term.prepare(batch)
            term(border, batch).backward()
            term.step(1e-3, measure=False)
            gathering.forget()

        works: dict[str, Callable[[], None]] = {"step": step}
        for name, objectives in COSTS.items():
            config = recipe(objectives, sizes.batch)
            made = build_objectives(ObjectiveSetting(config, ALONE, loader, program.head, gathering, False))
            (term,) = made.values()
            opened.callback(term.close)
            works[name] = partial(alone, term)
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(sizes.steps + 1):
            for name, work in works.items():
                begin = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - begin)
    found = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one warms up
    baseline = found.pop("step")
    for name, more in found.items():
        print_line(
            {
                "benchmark": "objectives",
                "case": f"{case}: {name}",
                "ours": round(baseline + more, 5),
                "baseline": round(baseline, 5),
                "ratio": round(baseline / (baseline + more), 4),
                "unit": "s a step",
                "run": {
                    "batch": sizes.batch,
                    "classes": sizes.classes,
                    "steps": sizes.steps,
                    "torch": torch.__version__,
                },
            }
        )


CASES: dict[str, Callable[[str, How], None]] = {**dict.fromkeys(STUDIES, study), "compatible": compatible}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(["cost", *CASES]), default="cost", help="what is measured")
    parser.add_argument("--batch", type=int, help="for a trial: other than the case has, a multiple of 4")
    parser.add_argument("--classes", type=int, help="for a trial: other than the case has")
    parser.add_argument("--steps", type=int, help="for a trial: steps of a measurement")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the runs of a study")
    parser.add_argument("--at-once", type=int, default=2, help="runs of a study beside each other")
    parser.add_argument("--set", nargs="+", default=(), metavar="KEY=VALUE", help="overrides of all runs of a study")
    options = parser.parse_args()
    if options.case != "cost":
        CASES[options.case](options.case, How(tuple(options.seeds), options.at_once, tuple(options.set)))
        return
    cost("cost", Sizes(options.batch or 512, options.classes or 100_000, options.steps or 7))


if __name__ == "__main__":
    main()
