"""`headcount checkpoint export` and `average`: weights for other programs and other runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_train.checkpoint.cli import Where, checkpoints_at
from dist_train.runtime.terminal import echo


class Names(StrEnum):
    """Projects whose names the tensors may have."""

    headcount = "headcount"
    arcface_torch = "arcface_torch"


_Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="file to write: .safetensors, or .pt for `torch.load`; its model card is FILE.md"
    ),
]
_Names = Annotated[Names, typer.Option("--names", help="whose names the tensors have")]


def export(
    where: Where,
    output: _Output,
    names: _Names = Names.headcount,
    centers: Annotated[
        bool,
        typer.Option(
            "--centers", help="also write the class centers, float32 [C, D] or [C, K, D], and their identities' names"
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="EVAL.json",
            help="figures of the checkpoint by `headcount eval --json`, whose thresholds the file and its card state",
        ),
    ] = None,
) -> None:
    """Write backbone weights as one plain file, for other programs and for `start.backbone` of other runs.

    The file holds the state dict alone: the moving average where one was kept. Beside it, FILE.md says what the network
    takes, what it was trained on and how to load it; a .safetensors has these facts in its header too. With --centers
    come FILE.centers.safetensors and FILE.identities.parquet, which name each row.

    Examples:

      headcount checkpoint export runs/quickstart -o quickstart.safetensors

      headcount checkpoint export runs/faces -o faces.pt --names arcface_torch
    """
    from dist_train.weights.export import export_checkpoint

    card = export_checkpoint(checkpoints_at(where)[-1], output, names.value, centers, calibration)
    written = [output.name, output.with_suffix(".md").name, *card.centers]
    echo(f"{output}: {card.parents[0]}, {output.stat().st_size / 1e6:.1f} MB; written: {', '.join(written)}")


def average(
    where: Annotated[
        list[Path], typer.Argument(metavar="WHERE...", help="run directories, or checkpoints in them; two or more")
    ],
    output: _Output,
    data: Annotated[
        str | None,
        typer.Option("--set", help="set of shards on whose pictures the BatchNorm statistics are made anew"),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="how many batches of 128 of its pictures are used")] = 100,
    names: _Names = Names.headcount,
) -> None:
    """Write the mean of several checkpoints' weights, a "model soup", as `headcount checkpoint export` writes one.

    Of a run the newest checkpoint is taken. BatchNorm statistics of the parents do not fit their mean, so they are
    measured on pictures of --set, as they are stored: the one that the runs were trained on will do.

    Example:

      headcount checkpoint average runs/a runs/b -o soup.safetensors --set sets/faces
    """
    from dist_train.weights.export import export_average

    card = export_average([checkpoints_at(each)[-1] for each in where], output, names.value, data, batches)
    echo(f"{output}: mean of {len(card.parents)} checkpoints; written: {output.name}, {output.with_suffix('.md').name}")
