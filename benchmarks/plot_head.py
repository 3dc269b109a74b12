"""The plot of the head's cost in docs/measured.md: `python benchmarks/plot_head.py` after `make bench`.

It draws the lines of `--case curve` in benchmarks/results.jsonl.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

RESULTS, OUT = Path("benchmarks/results.jsonl"), Path("docs/head_cost.png")
OURS, BASELINE = "#2457a6", "#b3541e"


def main() -> None:
    """Draw milliseconds a step and bytes an identity against the number of identities."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if (line["benchmark"], line["case"]) == ("head", "curve")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    draw(left, lines, "ours", "baseline")
    left.set_ylabel("ms a step")
    draw(right, lines, "bytes_per_identity", "baseline_bytes_per_identity")
    right.set_ylabel("bytes of memory an identity")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="identities")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("One step of the head: D = 512, rate 0.1, 2 ranks x 64 images, 2 CPU cores", fontsize=10)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)


def draw(axes: plt.Axes, lines: list[dict], ours: str, baseline: str) -> None:
    """One figure of ours, by kind of rows, and of the baseline where it was run."""
    for lean, style, label in ((False, "o-", "float32, momentum"), (True, "s--", "bfloat16, row-wise")):
        points = [(n["run"]["classes"], n[ours]) for n in lines if (n["run"].get("dtype") == "bfloat16") == lean]
        axes.plot(*zip(*points, strict=True), style, color=OURS, label=f"headcount, {label}")
    points = [(n["run"]["classes"], n[baseline]) for n in lines if n.get(baseline) is not None]
    axes.plot(*zip(*points, strict=True), "o-", color=BASELINE, label="dense parameter, float32, momentum")


if __name__ == "__main__":
    main()
