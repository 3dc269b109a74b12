"""The trackers of a run: metrics.jsonl always, and Weights & Biases with the same figures."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train.config import TrackConfig
from dist_train.data.levels import grey_levels
from dist_train.run_files import METRICS_NAME
from dist_train.runtime.written import write_text
from dist_train.track.wandb import WandbTracker

logger = logging.getLogger(__name__)

SHEET_COLUMNS, SHEET_ROWS = 8, 4


class JsonlTracker:
    """One JSON object a line in `metrics.jsonl`; a figure that is no finite number, as after a bad step, is null.

    On resume the lines after the checkpoint's step are taken back, since those steps are made again. Figures that a
    full disk refuses are lost, with one warning; training goes on.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self._path = run_dir / METRICS_NAME
        self._refused = 0
        kept = [line for line in read_metrics(run_dir) if line["step"] <= resume_step] if resume_step else []
        try:
            write_text(self._path, "".join(json_line(line) for line in kept))
        except OSError as error:
            self._warn(error)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Append one line."""
        # After a refused line its beginning may stand there: the next one begins anew.
        line = ("\n" if self._refused else "") + json_line({"step": step, **figures})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._warn(error)
        else:
            self._refused = 0

    def _warn(self, error: OSError) -> None:
        self._refused += 1
        if self._refused == 1:
            logger.error("FIGURES ARE LOST: %s: %s. Training goes on", self._path, error.strerror)


class Trackers:
    """All sinks of a run; on ranks other than 0 there are none.

    Args:
        run_dir: where `metrics.jsonl` is, and what W&B keeps.
        config: the `track` section.
        recipe: the whole recipe as JSON values, which W&B shows beside the figures.
        rank: this process's number.
        resume_step: the checkpoint's; 0 for a fresh start.
    """

    def __init__(self, run_dir: Path, config: TrackConfig, recipe: dict[str, Any], rank: int, resume_step: int) -> None:
        self._jsonl = JsonlTracker(run_dir, resume_step) if rank == 0 else None
        self._wandb: WandbTracker | None = None
        if rank == 0 and config.wandb != "disabled":
            self._wandb = WandbTracker(run_dir, config, recipe, resumed=resume_step > 0)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record `figures` at `step` everywhere."""
        if self._jsonl is not None:
            self._jsonl.log(step, figures)
        if self._wandb is not None:
            self._wandb.log(step, figures)

    def pictures(self, name: str, images: Tensor) -> None:
        """Show the first of `images` [B, 3, S, S] in [-1, 1], as they enter the network, in W&B."""
        if self._wandb is not None:
            self._wandb.pictures(name, picture_sheet(pixels(images[: SHEET_COLUMNS * SHEET_ROWS])))

    def checkpoint(self, path: Path) -> None:
        """Hand a complete checkpoint to Weights & Biases."""
        if self._wandb is not None:
            self._wandb.checkpoint(path)

    def close(self) -> None:
        """End all sinks; safe to repeat."""
        if self._wandb is not None:
            self._wandb.close()
        self._wandb = None


def pixels(images: Tensor) -> NDArray[np.uint8]:
    """[B, 3, S, S] in [-1, 1] -> grey levels [B, S, S, 3]."""
    return grey_levels(images.cpu()).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def picture_sheet(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures [B, S, S, 3] side by side in rows: one of [rows·S, columns·S, 3], black where there are none."""
    side = pictures.shape[1]
    rows = -(-len(pictures) // SHEET_COLUMNS)
    grid = np.zeros((rows * SHEET_COLUMNS, side, side, 3), dtype=np.uint8)
    grid[: len(pictures)] = pictures
    # [rows, columns, S, S, 3] -> [rows, S, columns, S, 3]
    stripes = grid.reshape(rows, SHEET_COLUMNS, side, side, 3).swapaxes(1, 2)
    return stripes.reshape(rows * side, SHEET_COLUMNS * side, 3)


def json_line(figures: dict[str, Any]) -> str:
    """A line of strict JSON, which has no NaN and no infinity: null stands for them."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`; one cut off by a kill or a full disk is left out.

    Values are numbers, or None where there was no finite one.
    """
    path = run_dir / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
