"""The command `headcount prep train-detector`."""

from pathlib import Path
from typing import Annotated

import typer

from dist_train.runtime.imports import quick_imports


def train_detector(
    recipe: Annotated[Path, typer.Argument(help="recipe to train by, e.g. configs/detector_drawn.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe with other values: section.key=value ...")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="write the three networks as ONNX files beside the detector, too")
    ] = False,
) -> None:
    """Train a detector of faces, P-Net, R-Net and O-Net in turn, on photos with known faces.

    The same command again goes on where it was. The result is OUT/detector.safetensors, which the commands that look
    for faces take as --detector. The command is one process, and one rank of many under torchrun.

    Examples:

      headcount prep train-detector configs/detector_drawn.yaml

      headcount prep train-detector configs/detector_wider.yaml out=runs/detector onet.steps=20000

      torchrun --nproc-per-node 2 -m launch prep train-detector configs/detector_drawn.yaml
    """
    from data_prep.mtcnn.training.config import load_recipe
    from dist_train.runtime.extras import require

    if onnx:
        require("export", "--onnx")
    settings = load_recipe(recipe, overrides or [])
    with quick_imports():
        from data_prep.mtcnn.training.job import train_detector as train

    raise typer.Exit(train(settings, onnx))
