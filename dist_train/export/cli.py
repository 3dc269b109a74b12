"""`headcount export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_train.runtime.terminal import echo


class Int8(StrEnum):
    """How activations get their range."""

    static = "static"
    dynamic = "dynamic"


def export(
    run: Annotated[Path, typer.Argument(help="run directory, or one checkpoint in it")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the .onnx file; other forms go beside it [RUN/model.onnx]")
    ] = None,
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set")] = 18,
    normalize_inside: Annotated[
        bool, typer.Option("--normalize-inside", help="take uint8 pictures [B, S, S, 3] and scale them in the model")
    ] = False,
    int8: Annotated[
        list[Int8] | None,
        typer.Option(help="int8 ONNX too: static needs --calibrate; dynamic is small, not fast; repeat"),
    ] = None,
    calibrate: Annotated[Path | None, typer.Option(help="shards to calibrate --int8 static with")] = None,
    calibration_images: Annotated[int, typer.Option(min=1, max=65536, help="pictures taken from --calibrate")] = 256,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="a TensorRT engine in float16 too; needs a GPU")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="a torch.export program too")] = False,
    sets: Annotated[
        list[Path] | None, typer.Option("--sets", "-s", help="verification set (.bin) to judge each form on; repeat")
    ] = None,
    check_images: Annotated[
        int, typer.Option(min=1, max=65536, help="pictures on which each form is compared with the original")
    ] = 128,
) -> None:
    """Write a trained backbone for deployment, and compare each form with the original.

    Pictures to compare on come from --sets, from --calibrate, or from the set of the run, whichever is there first. The
    table is also written as JSON beside the models.

    Examples:

      headcount export runs/quickstart

      headcount export runs/quickstart --normalize-inside -o face.onnx

      headcount export runs/faces --int8 static --calibrate sets/faces --sets lfw.bin
    """
    from dist_train.runtime.extras import require

    require("export", "headcount export")
    from dist_train.export.forms import forms_table
    from dist_train.export.job import ExportJob, export_forms

    job = ExportJob(
        run=run,
        output=output,
        opset=opset,
        normalize_inside=normalize_inside,
        int8=tuple(dict.fromkeys(each.value for each in int8 or ())),
        calibrate=calibrate,
        calibration_images=calibration_images,
        tensorrt=tensorrt,
        pt2=pt2,
        sets=tuple(sets or ()),
        check_images=check_images,
    )
    done = export_forms(job)
    echo(str(forms_table(done.figures)))
    for note in done.notes:
        echo(f"note: {note}")
    echo(f"models and {done.json_path.name}: {done.json_path.parent}")
