"""The forms of one model side by side: accuracy, closeness to the original, size and speed."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.errors import WorkError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.bin import VerificationSet
from dist_train.evaluate.tables import Cell, Table
from dist_train.evaluate.verification import evaluate_verification
from dist_train.runtime.written import write_failures, write_json

REFERENCE = "onnx float32"
SPEED_BATCH = 32


@dataclass(frozen=True)
class Form:
    """One form of a model.

    Attributes:
        name: for tables.
        embed: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        path: of its file; None for the network in this process.
    """

    name: str
    embed: EmbedFn
    path: Path | None = None


@dataclass
class Figures:
    """What was measured of a form.

    Attributes:
        name: of the form.
        file: name of its file.
        size_bytes: of its file.
        images_per_s: median over rounds in which the forms took turns.
        cosine_mean: to the original's embeddings, over the pictures.
        cosine_min: likewise the lowest.
        accuracy: share of pairs judged rightly, by verification set.
    """

    name: str
    file: str | None
    size_bytes: int | None
    images_per_s: float
    cosine_mean: float | None = None
    cosine_min: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)


def measure_forms(
    forms: Sequence[Form],
    image_size: int,
    pictures: Tensor | None,
    sets: Sequence[VerificationSet] = (),
    *,
    flip: bool = True,
    rounds: int = 7,
) -> list[Figures]:
    """Measure each form; the first is the original.

    Args:
        forms: the original first.
        image_size: S, in pixels.
        pictures: real ones to compare embeddings on, float32 [N, 3, S, S] in [-1, 1]; None: no cosines.
        sets: to judge by LFW's protocol.
        flip: add the mirrored picture's embedding there.
        rounds: of timing; each form embeds 32 pictures once a round, so that all see the same load of the machine.

    Raises:
        WorkError: embeddings that are not finite, or a damaged picture.
    """
    batch = torch.zeros(SPEED_BATCH, 3, image_size, image_size)
    if pictures is not None:
        batch = pictures[torch.arange(SPEED_BATCH) % len(pictures)]
    speeds = _speeds(forms, batch, rounds)
    figures = []
    original: Tensor | None = None
    for form, speed in zip(forms, speeds, strict=True):
        size = form.path.stat().st_size if form.path else None
        row = Figures(form.name, form.path.name if form.path else None, size, speed)
        if pictures is not None:
            embeddings = _embed(form, pictures)
            original = embeddings if original is None else original
            cosines = nn.functional.cosine_similarity(embeddings, original)
            row.cosine_mean, row.cosine_min = float(cosines.mean()), float(cosines.min())
        for dataset in sets:
            result = evaluate_verification(form.embed, dataset, image_size, SPEED_BATCH, flip=flip)
            if result.accuracy is not None:  # a set with one kind of pairs has none
                row.accuracy[dataset.name] = result.accuracy
        figures.append(row)
    return figures


def _embed(form: Form, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        rows = torch.cat([form.embed(part).double().cpu() for part in pictures.split(SPEED_BATCH)])
    if not torch.isfinite(rows).all():
        raise WorkError(f"{form.name}: embeddings are not finite; the model is damaged or training diverged")
    return rows


def _speeds(forms: Sequence[Form], batch: Tensor, rounds: int) -> list[float]:
    """Median images/s of each form; the first round only warms up."""
    seconds: list[list[float]] = [[] for _ in forms]
    with torch.inference_mode():
        for number in range(rounds + 1):
            for taken, form in zip(seconds, forms, strict=True):
                begin = time.perf_counter()
                form.embed(batch).cpu()
                if number:
                    taken.append(time.perf_counter() - begin)
    return [len(batch) / statistics.median(taken) for taken in seconds]


def forms_table(figures: Sequence[Figures]) -> Table:
    """The figures as a table, each beside float32 ONNX where that is among them."""
    base = next((row for row in figures if row.name == REFERENCE), None)
    names = list(dict.fromkeys(name for row in figures for name in row.accuracy))
    compared = any(row.cosine_mean is not None for row in figures)
    heads = ["form", *(f"{name} %" for name in names)]
    heads += ["cosine mean", "lowest"] if compared else []
    rows = []
    for row in figures:
        other = base if base is not None and row is not base else None
        cells = [row.name]
        for name in names:
            moved = f" ({100 * (row.accuracy[name] - other.accuracy[name]):+.2f})" if other else ""
            cells.append(f"{100 * row.accuracy[name]:.2f}{moved}")
        if compared:
            cells += [f"{value:.6f}" if value is not None else "" for value in (row.cosine_mean, row.cosine_min)]
        size = f"{row.size_bytes / 1e6:.2f} MB" if row.size_bytes else ""
        if size and other and other.size_bytes and row.size_bytes:
            size += f" (x{row.size_bytes / other.size_bytes:.2f})"
        speed = f"{row.images_per_s:.0f}" + (f" (x{row.images_per_s / other.images_per_s:.2f})" if other else "")
        rows.append([Cell(text) for text in [*cells, size, speed]])
    return Table("Exported forms", [*heads, "size", "images/s"], rows, [f"In brackets: against {REFERENCE}."])


def write_figures(path: Path, figures: Sequence[Figures], about: dict[str, Any]) -> None:
    """Write the figures as JSON, by rename: `about` and, under `forms`, a list.

    Raises:
        WorkError: it cannot be written.
    """
    with write_failures(f"figures {path}"):
        write_json(path, about | {"forms": [vars(row) for row in figures]})
