"""A command on a machine that others use too, and on one that is its own: threads that sleep while they wait, or spin.

    python benchmarks/busy.py                                     # after make quickstart, which draws its set
    python benchmarks/busy.py --recipe configs/benchmark.yaml --steps 40

`headcount train` with its defaults, in turns with the same where GNU OpenMP's threads spin as long as they do by
themselves. `busy`: beside it as many processes as there are cores do nothing but compute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command import headcount
from line import print_line

SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own, where there is a core for each thread
ROUNDS = 3


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables of the commands that are started meanwhile."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def rate(recipe: Path, steps: int, variables: dict[str, str]) -> float:
    """Images a second of a run of its first steps."""
    with tempfile.TemporaryDirectory() as name, environment(variables):
        run = Path(name) / "run"
        headcount(
            "train", recipe, f"run_dir={run}", f"train.steps={steps}", "train.epochs=null", "train.device=cpu",
            "evaluate.verification=[]", "evaluate.identification=[]", "export.onnx=false", "track.wandb=disabled",
        )  # fmt: skip
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return float(statistics.median(json.loads(line)["images_per_s"] for line in lines[1:]))


def main() -> None:
    """Print a line for the busy and one for the idle machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    for case in ("busy", "idle"):
        others = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores if case == "busy" else 0)
        ]
        try:
            found = [[rate(options.recipe, options.steps, each) for each in ({}, SPINNING)] for _ in range(ROUNDS)]
        finally:
            for other in others:
                other.kill()
                other.wait()
        ours, baseline = (statistics.median(column) for column in zip(*found, strict=True))
        print_line(
            {
                "benchmark": "busy",
                "case": case,
                "ours": round(ours, 1),
                "baseline": round(baseline, 1),
                "ratio": round(ours / baseline, 3),
                "unit": "images/s",
                "run": {"recipe": str(options.recipe), "steps": options.steps, "rounds": ROUNDS},
            }
        )


if __name__ == "__main__":
    main()
