"""`headcount eval`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dist_train.evaluate.models import Model
    from dist_train.evaluate.report import ModelScores
    from dist_train.ranks import Ranks


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="run directories, checkpoints or .onnx files")],
    sets: Annotated[
        list[Path] | None, typer.Option("--sets", "-s", help=".bin file, or directory with gallery and probes; repeat")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures there")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="write an HTML report there")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures per rank and forward pass")] = 64,
    flip: Annotated[bool, typer.Option(help="add the mirrored picture's embedding")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Evaluate models on verification and identification sets; several models side by side.

    One process here; under torchrun the pictures and the gallery are split over the ranks.

    Examples:

      headcount eval runs/quickstart --sets data/quickstart/heldout/verification.bin

      headcount eval runs/quickstart/model.onnx other.onnx -s lfw.bin -s data/heldout --report compare.html
    """
    from dist_train.errors import UserError
    from dist_train.evaluate.models import load_model
    from dist_train.evaluate.report import write_comparison
    from dist_train.ranks import join_ranks, leave_ranks

    if not sets:
        raise UserError("no set to evaluate on; give --sets FILE.bin or --sets DIRECTORY")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    ranks = join_ranks(device, None)
    try:
        opened = ranks.agree(lambda: _named([load_model(path, ranks.device) for path in models]))
        scores = [_score(model, sets, batch_size, flip, ranks) for model in opened]
        if ranks.rank != 0:
            return
        typer.echo(format_table(scores))
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


def _score(model: "Model", sets: list[Path], batch_size: int, flip: bool, ranks: "Ranks") -> "ModelScores":
    from dist_train.evaluate.identification import evaluate_identification
    from dist_train.evaluate.report import ModelScores
    from dist_train.evaluate.verification import evaluate_verification, read_bin

    verification, identification = [], []
    where = (model.image_size, batch_size, ranks.rank, ranks.world_size, ranks.control_group)
    for path in sets:
        if path.suffix == ".bin" or path.is_file():
            dataset = ranks.agree(partial(read_bin, path))
            verification.append(evaluate_verification(model.embed, dataset, *where, flip=flip))
        else:
            identification.append(evaluate_identification(model.embed, path, *where, flip=flip))
    return ModelScores(model.name, verification, identification)


def format_table(scores: list["ModelScores"]) -> str:
    """Results as lines of text, one per model and set."""
    lines = []
    for model in scores:
        for verified in model.verification:
            tars = "  ".join(
                f"TAR@{far:g} {100 * entry.tar:.2f}{'' if entry.resolved else '*'}"
                for far, entry in verified.tar_at_far.items()
            )
            lines.append(
                f"{model.name:20} {verified.name:16} accuracy {100 * verified.accuracy:.2f} "
                f"+- {100 * verified.accuracy_std:.2f}  {tars}  threshold {verified.threshold:.3f}  "
                f"norm {verified.mean_norm:.2f}"
            )
        for identified in model.identification:
            tpirs = "  ".join(f"TPIR@{fpir:g} {100 * tpir:.2f}" for fpir, tpir in identified.tpir_at_fpir.items())
            lines.append(
                f"{model.name:20} {identified.name:16} rank-1 {100 * identified.rank1:.2f}  "
                f"rank-5 {100 * identified.rank5:.2f}  {tpirs}  {identified.probes} probes in {identified.gallery}"
            )
    if any(not e.resolved for m in scores for v in m.verification for e in v.tar_at_far.values()):
        lines.append("* fewer than one expected false accept in the set: the TAR is that of none")
    return "\n".join(lines)


def _write_json(path: Path, scores: list["ModelScores"]) -> None:
    import json

    from dist_train.errors import WorkError

    body: list[dict[str, Any]] = [
        {
            "model": model.name,
            "verification": [result.summary() for result in model.verification],
            "identification": [result.summary() for result in model.identification],
        }
        for model in scores
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"figures {path}: cannot be written: {error.strerror}") from error
