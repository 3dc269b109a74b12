"""`headcount export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo


class Int8(StrEnum):
    """How activations get their range, and weights theirs."""

    static = "static"
    dynamic = "dynamic"
    trained = "trained"


def export(
    run: Annotated[
        Path,
        typer.Argument(help="run directory to export, or one checkpoint in it; with --triton alone also an .onnx file"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="the .onnx file to write, other forms beside it; by default RUN/model.onnx"
        ),
    ] = None,
    opset: Annotated[int, typer.Option(min=18, max=23, help="version of the ONNX operator set")] = 18,
    normalize_inside: Annotated[
        bool,
        typer.Option("--normalize-inside", help="the model takes uint8 pictures [B, S, S, 3] and scales them itself"),
    ] = False,
    int8: Annotated[
        list[Int8] | None,
        typer.Option(
            help="also write int8 ONNX: static needs --calibrate; trained needs it too, takes longer and loses less; "
            "dynamic is small but not fast; repeat for more"
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="directory of shards with pictures for --int8 static and --int8 trained; no labels"),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, max=65536, help="how many of its pictures --int8 static takes")
    ] = 256,
    steps: Annotated[int, typer.Option(min=11, max=10_000_000, help="of --int8 trained, with 64 pictures each")] = 1000,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="also write a TensorRT engine in float16; needs a GPU")
    ] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="also write a torch.export program")] = False,
    sets: Annotated[
        list[Path] | None,
        typer.Option("--sets", "-s", help="verification set (.bin) to evaluate each form on; repeat for more"),
    ] = None,
    check_images: Annotated[
        int, typer.Option(min=1, max=65536, help="how many pictures each form is compared with the original on")
    ] = 128,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="with --int8 static: say what each layer alone costs; takes a while"),
    ] = False,
    float_layers: Annotated[
        int,
        typer.Option(min=0, max=1000, help="with --sensitivity: how many layers, the dearest, stay in float32"),
    ] = 0,
    float16: Annotated[
        bool, typer.Option("--float16", help="also write ONNX in float16: half the size, for GPUs and accelerators")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="the ONNX files take so many pictures and no other number, for accelerators that want fixed shapes; "
            "by default any",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="EVAL.json",
            help="figures of RUN by `headcount eval --json`, whose thresholds the files state, but int8 ones",
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="also write a model repository for NVIDIA's Triton Inference Server"),
    ] = None,
) -> None:
    """Write a trained backbone for deployment, and compare each form with the original.

    The pictures of the comparison come from --sets; without it from --calibrate, and without both from the set of the
    run. The table is also written as JSON beside the models.

    Examples:

      headcount export runs/quickstart

      headcount export runs/quickstart --normalize-inside -o face.onnx

      headcount export runs/faces --int8 static --calibrate sets/faces --sets lfw.bin

      headcount export runs/faces --int8 static --calibrate sets/faces --sensitivity --float-layers 3

      headcount export runs/faces --int8 trained --calibrate sets/faces --steps 2000

      headcount export runs/faces --calibration figures.json

      headcount export runs/faces/model.int8.onnx --triton repository
    """
    from dist_train.runtime.extras import require

    require("export", "headcount export")
    with quick_imports():
        from dist_train.export.forms import forms_table
        from dist_train.export.job import ExportJob, export_forms
        from dist_train.export.sensitivity import costs_table
        from dist_train.export.triton_repository import write_repository

    job = ExportJob(
        run=run,
        output=output,
        opset=opset,
        normalize_inside=normalize_inside,
        int8=tuple(dict.fromkeys(each.value for each in int8 or ())),
        calibrate=calibrate,
        calibration_images=calibration_images,
        steps=steps,
        tensorrt=tensorrt,
        pt2=pt2,
        sets=tuple(sets or ()),
        check_images=check_images,
        calibration=calibration,
        float16=float16,
        batch=batch,
        sensitivity=sensitivity,
        float_layers=float_layers,
        triton=triton,
    )
    if run.suffix == ".onnx":
        if triton is None or job != ExportJob(run, triton=triton):
            raise UserError(f"{run}: is exported already; a model repository can be made of it, by --triton DIR alone")
        write_repository(run, triton)
        echo(f"model repository: {triton}")
        return
    done = export_forms(job)
    if done.costs:
        echo(f"{costs_table(done.costs, done.left_float)}\n")
    echo(str(forms_table(done.figures)))
    for note in done.notes:
        echo(f"note: {note}")
    echo(f"models and {done.json_path.name}: {done.json_path.parent}")
    if triton is not None:
        echo(f"model repository: {triton}")
