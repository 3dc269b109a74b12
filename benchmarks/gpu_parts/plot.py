"""A plot of the stored lines: the head beside its floors and the dense form, and images a second.

python -m benchmarks.gpu_parts.plot gpu.jsonl        # writes gpu.png beside it
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Draw what the file has; nothing where matplotlib is not installed."""
    path = Path(sys.argv[1])
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed here", file=sys.stderr)
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        lines[line["part"], line["case"]] = line  # the newest of each
    head = {case: each for (part, case), each in lines.items() if part == "head" and "ms" in each}
    speeds = {case: each for (part, case), each in lines.items() if part == "backbone" and "images_s" in each}
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 2 + 0.28 * max(len(head), len(speeds), 4)))
    left.barh(list(head), [each["ms"] for each in head.values()], color="tab:blue")
    for floor, color in (("product_floor_ms", "black"), ("bandwidth_floor_ms", "tab:red")):
        points = [(each[floor], place) for place, each in enumerate(head.values()) if floor in each]
        left.plot(*zip(*points, strict=True) if points else ([], []), "|", color=color, markersize=9, label=floor)
    left.set(title="head: forward, backward, step", xlabel="ms", xscale="log" if head else "linear")
    left.legend()
    right.barh(list(speeds), [each["images_s"] for each in speeds.values()], color="tab:blue")
    planned = [(each["planned"], place) for place, each in enumerate(speeds.values()) if "planned" in each]
    right.plot(*zip(*planned, strict=True) if planned else ([], []), "|", color="black", markersize=12, label="planned")
    right.set(title="whole training step", xlabel="images/s")
    right.legend()
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
    devices = {each["device"] for each in lines.values() if "device" in each}
    figure.suptitle(", ".join(sorted(devices)))
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
