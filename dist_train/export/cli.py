"""`headcount export`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="run directory, or one checkpoint in it")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: model.onnx in the run")] = None,
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set")] = 18,
    normalize_inside: Annotated[
        bool, typer.Option("--normalize-inside", help="take uint8 pictures [B, S, S, 3] and scale them in the model")
    ] = False,
) -> None:
    """Write a trained backbone for deployment, and compare it with the original.

    Examples:

      headcount export runs/quickstart

      headcount export runs/quickstart --normalize-inside -o face.onnx
    """
    from dist_train.checkpoint import load_backbone
    from dist_train.export.onnx import export_onnx

    backbone, _, progress = load_backbone(run)
    path = output or run / "model.onnx"
    done = export_onnx(backbone, progress.image_size, path, normalize_inside=normalize_inside, opset=opset)
    typer.echo(f"{done.path}: opset {done.opset}, {done.size_bytes / 1e6:.1f} MB")
