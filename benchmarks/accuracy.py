"""What the losses, sampling, row types and optimizers do to accuracy, at equal steps on the glyph set.

    python benchmarks/accuracy.py                       # every variant: runs/benchmark/, then the table
    python benchmarks/accuracy.py --only base sampling-0.1
    python benchmarks/accuracy.py --table               # the table of what is in benchmarks/accuracy.jsonl
    python benchmarks/accuracy.py --steps 7500 --only base base-seed1 sampling-0.1

With `--steps` runs and results have the number in their names: runs/benchmark-7500/, benchmarks/accuracy-7500.jsonl.
Each variant is a run of its own by `headcount launch local`, which differs from configs/benchmark.yaml in what is
named here and nothing else. A finished run is not made again, and a stored result whose run is gone stays. `base` is
trained under three seeds: a difference smaller than their spread says nothing.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dist_train.run_files import CONFIG_NAME, SUMMARY_NAME

RECIPE = Path("configs/benchmark.yaml")
SEEDS = (0, 1, 2)

# The base is ArcFace over all classes: s = 16, m = 0.1, float32 rows, SGD with momentum, two ranks. Where a variant
# changes the length of a gradient or of a step, it has a learning rate of its own.
VARIANTS: dict[str, list[str]] = {
    **{"base" if seed == 0 else f"base-seed{seed}": [f"seed={seed}"] for seed in SEEDS},
    "softmax": ["head.margin=softmax", "head.scale=null", "head.m2=null", "head.lr_scale=25"],
    "normface": ["head.margin=normface", "head.m2=null"],
    "sphereface": ["head.margin=sphereface", "head.m2=null", "head.m1=1.1"],
    "cosface": ["head.margin=cosface", "head.m2=null", "head.m3=0.1"],
    "adaface": ["head.margin=adaface"],
    "curricularface": ["head.margin=curricularface"],
    "sampling-0.3": ["head.sample_rate=0.3"],
    "sampling-0.1": ["head.sample_rate=0.1"],
    "sampling-0.01": ["head.sample_rate=0.01"],
    "bfloat16": ["head.dtype=bfloat16"],
    "products-bfloat16": ["head.arithmetic=bfloat16"],
    "products-tf32": ["head.arithmetic=tf32"],
    "no-momentum": ["head.momentum=0", "head.lr_scale=750"],
    "rowwise": ["head.optimizer=rowwise_adagrad", "head.lr_scale=7.5"],
    "filtering": ["head.filter_eps=1e-6"],
    "one-rank": [],
}
INT8 = "int8"  # the base, as static int8 ONNX
HELDOUT = Path("data/benchmark/heldout")


def train(runs: Path, name: str, overrides: list[str]) -> None:
    """Make a variant's run, unless it is finished; go on with a begun one."""
    run_dir = runs / name
    if (run_dir / SUMMARY_NAME).exists():
        return
    ranks = "1" if name == "one-rank" else "2"
    resume = ["--resume"] if (run_dir / CONFIG_NAME).exists() else []
    own = [f"run_dir={run_dir}", *VARIANTS[name], *overrides]
    command = [sys.executable, "-m", "launch", "launch", "local", str(RECIPE), *own, "--ranks", ranks, *resume]
    print(" ".join(["headcount", *command[3:]]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def quantise(runs: Path) -> None:
    """Export the base to static int8 ONNX and evaluate that, unless it is done."""
    run, figures = runs / "base", runs / "int8.json"
    if figures.exists():
        return
    headcount = [sys.executable, "-m", "launch"]
    calibrate = ["--int8", "static", "--calibrate", "data/benchmark/train"]
    subprocess.run([*headcount, "export", str(run), *calibrate], check=True)
    sets = ["--sets", str(HELDOUT / "verification.bin"), "--sets", str(HELDOUT), "--no-flip"]
    subprocess.run([*headcount, "eval", str(run / "model.int8.onnx"), *sets, "--json", str(figures)], check=True)


def collect(runs: Path, name: str) -> dict[str, Any] | None:
    """A variant's line; None where its run is not finished."""
    path = runs / (f"{INT8}.json" if name == INT8 else f"{name}/{SUMMARY_NAME}")
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if name != INT8:
        return {"benchmark": "accuracy", "case": name, "overrides": VARIANTS[name], **found}
    pairs, search = found[0]["verification"][0], found[0]["identification"][0]
    return {
        "benchmark": "accuracy",
        "case": name,
        "of": "base",
        "verification_accuracy": pairs["accuracy"],
        "verification_accuracy_std": pairs["accuracy_std"],
        "tar_at_far": pairs["tar_at_far"],
        "rank1": search["rank1"],
    }


def read(results: Path) -> list[dict[str, Any]]:
    """The stored lines."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: percent, and the difference to the mean of `base` over its seeds; * where it is outside their range.

    What was made of one run, not trained, is compared with that run.
    """
    measures = {
        "verification": lambda line: line["verification_accuracy"],
        "TAR at FAR 1e-3": lambda line: line["tar_at_far"]["0.001"],
        "rank-1": lambda line: line["rank1"],
    }
    base = [line for line in lines if line["case"].startswith("base")]
    rows = [
        "| variant | " + " | ".join(f"{name}, % (difference)" for name in measures) + " |",
        "|---|" + "---|" * len(measures),
    ]
    for line in lines:
        cells = []
        for measure in measures.values():
            values = [100 * measure(one) for one in base if line.get("of") in (None, one["case"])]
            mean = sum(values) / len(values)
            difference = 100 * measure(line) - mean
            beyond = "of" not in line and not min(values) <= 100 * measure(line) <= max(values)
            cells.append(f"{100 * measure(line):.2f} ({difference:+.2f}{'*' if beyond else ''})")
        rows.append(f"| {line['case']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help="these variants alone")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--table", action="store_true", help="print the table of the stored results and end")
    options = parser.parse_args()
    suffix = f"-{options.steps}" if options.steps else ""
    runs, results = Path(f"runs/benchmark{suffix}"), Path(f"benchmarks/accuracy{suffix}.jsonl")
    if not options.table:
        for name in options.only or VARIANTS:
            train(runs, name, [f"train.steps={options.steps}"] if options.steps else [])
        if (runs / "base" / SUMMARY_NAME).exists():
            quantise(runs)
        stored = {line["case"]: line for line in read(results)} if results.exists() else {}
        found = {name: collect(runs, name) or stored.get(name) for name in (*VARIANTS, INT8)}
        lines = [line for line in found.values() if line]
        results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(table(read(results)))


if __name__ == "__main__":
    main()
