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
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from dist_train.evaluate.config import EvaluateConfig
    from dist_train.evaluate.models import Model
    from dist_train.evaluate.tables import ModelScores


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="run directories, checkpoints or .onnx files")],
    sets: Annotated[
        list[Path] | None,
        typer.Option("--sets", "-s", help=".bin file, IJB-B or IJB-C, or shards with gallery and probes; repeat"),
    ] = None,
    distractors: Annotated[
        Path | None, typer.Option(help="shards of strangers, to hide the mates of every set of shards among them")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures there")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="write an HTML report there")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures per rank and forward pass")] = 64,
    flip: Annotated[bool, typer.Option(help="add the mirrored picture's embedding")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
) -> None:
    """Evaluate models on verification and identification sets; several models side by side.

    One process here; under torchrun the pictures and the gallery are split over the ranks.

    Examples:

      headcount eval runs/quickstart --sets data/quickstart/heldout/verification.bin

      headcount eval runs/quickstart/model.onnx other.onnx -s lfw.bin -s data/heldout --report compare.html

      headcount eval w600k_r50.onnx -s lfw.bin --input-range 0..255

      headcount eval runs/faces -s sets/IJBC -s sets/facescrub --distractors sets/megaface --json figures.json
    """
    from dist_train.errors import UserError, WorkError
    from dist_train.evaluate.config import check_names
    from dist_train.evaluate.kinds import Judging, result_tables
    from dist_train.evaluate.models import load_models
    from dist_train.evaluate.report import write_comparison
    from dist_train.evaluate.suite import evaluate_sets
    from dist_train.runtime.ranks import join_ranks, leave_ranks

    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    if not sets:
        raise UserError("no set to evaluate on; give --sets FILE.bin or --sets DIRECTORY")
    check_names(sets)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    ranks = join_ranks(device, None)
    try:
        opened = ranks.agree(lambda: _named(load_models(models, ranks.device, said)))
        by_kind = _by_kind(sets, distractors)
        scores = [
            evaluate_sets(by_kind, Judging(model.embed, model.image_size, batch_size, ranks, flip)).named(model.name)
            for model in opened
        ]
        if ranks.rank != 0:
            return
        echo("\n\n".join(map(str, result_tables(scores))))
        if json_path:
            _write_json(json_path, scores)
        if report:
            write_comparison(report, "Evaluation", scores)
    except (UserError, WorkError) as error:
        if ranks.rank == 0:
            raise
        # Every rank has the same message, and the first one says it.
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from error
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


def _by_kind(sets: list[Path], distractors: Path | None) -> "EvaluateConfig":
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
    )


def _write_json(path: Path, scores: list["ModelScores"]) -> None:
    import json

    from dist_train.errors import WorkError
    from dist_train.evaluate.kinds import KINDS

    body: list[dict[str, Any]] = [
        {
            "model": model.name,
            **{kind.name: [result.summary() for result in getattr(model, kind.name)] for kind in KINDS},
        }
        for model in scores
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(_finite(body), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"figures {path}: cannot be written: {error.strerror}") from error


def _finite(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """The value with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
