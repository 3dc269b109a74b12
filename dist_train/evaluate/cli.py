"""`headcount eval`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dist_train.evaluate.options import (
    ColorOption,
    MeanOption,
    OutputOption,
    RangeOption,
    SizeOption,
    StdOption,
    stated,
)
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from dist_train.evaluate.config import EvaluateConfig
    from dist_train.evaluate.models import Model
    from dist_train.evaluate.tables import ModelScores


def evaluate(
    models: Annotated[
        list[Path], typer.Argument(help="models to evaluate: run directories, checkpoints or .onnx files")
    ],
    sets: Annotated[
        list[Path] | None,
        typer.Option(
            "--sets", "-s", help="what to evaluate on: a .bin file, a directory of IJB, or of shards; repeat for more"
        ),
    ] = None,
    distractors: Annotated[
        Path | None,
        typer.Option(help="directory of shards of strangers, among whom the mates of other sets of shards are hidden"),
    ] = None,
    knn: Annotated[
        list[Path] | None,
        typer.Option(help="directory of labelled shards, whose pictures their neighbours classify; repeat for more"),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="file for the figures as JSON")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="file for an HTML report")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures in one forward pass of a rank")] = 64,
    flip: Annotated[bool, typer.Option(help="whether the mirrored picture's embedding is added")] = True,
    device: Annotated[str, typer.Option(help="where the model runs: auto, cpu or cuda")] = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
) -> None:
    """Evaluate models on verification and identification sets, several models side by side.

    The command is one process; under torchrun the pictures and the gallery are split over the ranks.

    Examples:

      headcount eval runs/quickstart --sets data/quickstart/heldout/verification.bin

      headcount eval runs/quickstart/model.onnx other.onnx -s lfw.bin -s data/heldout --report compare.html

      headcount eval w600k_r50.onnx -s lfw.bin --input-range 0..255

      headcount eval runs/faces -s sets/IJBC -s sets/facescrub --distractors sets/megaface --json figures.json
    """
    with quick_imports():
        from dist_train.errors import UserError
        from dist_train.evaluate.config import check_names
        from dist_train.evaluate.judging import Judging
        from dist_train.evaluate.kinds import result_tables
        from dist_train.evaluate.models import load_models
        from dist_train.evaluate.report import write_comparison
        from dist_train.evaluate.suite import evaluate_sets
        from dist_train.runtime.extras import require
        from dist_train.runtime.ranks import join_ranks, leave_ranks

    if report is not None:
        require("report", "--report")
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    if not sets and not knn:
        raise UserError("no set to evaluate on; give --sets FILE.bin or --sets DIRECTORY")
    for each in (sets or [], knn or []):
        check_names(each)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    ranks = join_ranks(device, None)
    try:
        with ranks.first_speaks():
            opened = ranks.agree(lambda: _named(load_models(models, ranks.device, said)))
            by_kind = _by_kind(sets or [], distractors, knn or [])
            ways = [Judging(model.embed, model.image_size, batch_size, ranks, flip) for model in opened]
            scores = [evaluate_sets(by_kind, how).named(model.name) for model, how in zip(opened, ways, strict=True)]
        if ranks.rank != 0:
            return
        echo("\n\n".join(map(str, result_tables(scores))))
        if json_path:
            _write_json(json_path, scores)
        if report:
            write_comparison(report, "Evaluation", scores)
    finally:
        leave_ranks(ranks)


def _named(models: list["Model"]) -> list["Model"]:
    """Models whose names are told apart."""
    from dataclasses import replace

    names = [model.name for model in models]
    return [
        replace(model, name=f"{model.name} ({number})") if names.count(model.name) > 1 else model
        for number, model in enumerate(models, start=1)
    ]


def _by_kind(sets: list[Path], distractors: Path | None, knn: list[Path]) -> "EvaluateConfig":
    """The sets as a recipe names them; what a path is shows in its name and in what lies there."""
    from dist_train.evaluate.config import DistractorConfig, EvaluateConfig
    from dist_train.evaluate.ijb_layout import ijb_kind

    files = [path for path in sets if path.suffix == ".bin" or path.is_file()]
    layouts = [path for path in sets if path not in files and ijb_kind(path)]
    shards = [path for path in sets if path not in files and path not in layouts]
    return EvaluateConfig(
        verification=tuple(files),
        ijb=tuple(layouts),
        identification=() if distractors else tuple(shards),
        distractors=tuple(DistractorConfig(set=path, strangers=distractors) for path in shards) if distractors else (),
        knn=tuple(knn),
    )


def _write_json(path: Path, scores: list["ModelScores"]) -> None:
    from dist_train.evaluate.kinds import KINDS
    from dist_train.runtime.written import write_failures, write_json

    body: list[dict[str, Any]] = [
        {
            "model": model.name,
            **{kind.name: [result.summary() for result in getattr(model, kind.name)] for kind in KINDS},
        }
        for model in scores
    ]
    with write_failures(f"figures {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _finite(body))


def _finite(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """The value with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
