"""The README's picture of a quickstart run: `python benchmarks/plot_quickstart.py` after `make quickstart`.

For a curve of the accuracy the run needs `evaluate.every_steps`; without it there is one point, at the end.
"""

import json
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from dist_train.run_files import METRICS_NAME

RUN, DATA, OUT = Path("runs/quickstart"), Path("data/quickstart"), Path("docs/quickstart.png")
VIEWS_SHOWN, IDENTITIES_SHOWN, SIDE = 16, 5, 64


def main() -> None:
    """Draw pictures of the set, loss, cosines and accuracy over the steps."""
    lines = [json.loads(line) for line in (RUN / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplot_mosaic(
        [["set", "set", "set"], ["loss", "cosine", "accuracy"]], figsize=(11, 5.6), height_ratios=[1.15, 1]
    )
    sheet = cv2.imread(str(DATA / "sheet.png"))[: IDENTITIES_SHOWN * SIDE, : VIEWS_SHOWN * SIDE, ::-1]
    axes["set"].imshow(sheet)
    axes["set"].axis("off")
    axes["set"].set_title("A row is an identity: one character, drawn by many fonts", loc="left", fontsize=10)
    accuracy = next(key for line in lines for key in line if key.endswith("/accuracy"))
    for name, key, title in (
        ("loss", "loss", "ArcFace loss"),
        ("cosine", "head/target_cosine_mean", "Cosine to the own class center"),
        ("accuracy", accuracy, "Verification of unseen characters and fonts"),
    ):
        points = [(line["step"], line[key]) for line in lines if key in line]
        marker = "o" if name == "accuracy" else None  # a single evaluation is a point, not a line
        axes[name].plot(*zip(*points, strict=True), color="#2457a6", marker=marker)
        axes[name].set_title(title, loc="left", fontsize=10)
        axes[name].set_xlabel("step")
        axes[name].grid(alpha=0.3)
        axes[name].spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
