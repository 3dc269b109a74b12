"""The command `headcount data clean`."""

from pathlib import Path
from typing import Annotated

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
from launch.embed.cli import DeviceOption, check_device


def clean(
    path: Annotated[Path, typer.Argument(metavar="SET", help="directory of a labelled set of shards")],
    model: Annotated[
        Path | None, typer.Option(help="model that compares the pictures: a run directory, a checkpoint or a file")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="file that `headcount embed MODEL SET FILE` wrote; then no picture is embedded")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="test set whose pictures must not be in SET: a .bin or a directory of shards; repeat"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="directory of the findings; by default SET-findings")] = None,
    certainty: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=0.9999,
            help="share of right findings that thresholds are chosen for; less finds more: 0.8 where many labels are "
            "wrong and the model was trained on them",
        ),
    ] = 0.93,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=NUMBER",
            help="threshold in place of the set's own: outlier and merge at most, duplicate and test at least; repeat",
        ),
    ] = None,
    apply: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FINDINGS OUT", help="findings to apply, and the directory of the new set without them"),
    ] = None,
    exceptions: Annotated[
        Path | None, typer.Option("--except", help="findings that are not applied: the list that the sheet saves")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures in one forward pass of a rank")] = 64,
    flip: Annotated[bool, typer.Option(help="whether the mirrored picture's embedding is added")] = True,
    device: DeviceOption = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
) -> None:
    """Find wrong labels, identities that are one, pictures that are there twice or in a test set; or leave them out.

    OUT gets findings.parquet, and sheet.html to look through and strike out what is no fault. SET stays as it is;
    --apply writes a new set. The command is one process; under torchrun the ranks share the work.

    Examples:

      headcount data clean sets/faces --model runs/faces --against lfw.bin

      headcount data clean sets/faces --embeddings faces.npy --out findings

      headcount data clean sets/faces --apply findings/findings.parquet sets/clean --except exceptions.json
    """
    from dist_train.errors import UserError

    if apply is not None:
        if model or embeddings or against or out or threshold:
            raise UserError("--apply goes with --except alone: what is wrong was found before")
        _apply(path, *apply, exceptions)
        return
    if exceptions is not None:
        raise UserError("--except goes with --apply FINDINGS OUT")
    if model is None and embeddings is None:
        raise UserError("give --model RUN, or --embeddings FILE that `headcount embed` wrote")
    check_device(device)
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    from dist_train.clean.job import Asked, look_through
    from dist_train.evaluate.judging import Judging
    from dist_train.evaluate.models import load_model
    from dist_train.runtime.ranks import join_ranks, leave_ranks

    beside = out or path.with_name(f"{path.resolve().name}-findings")
    asked = Asked(path, embeddings, tuple(against or ()), beside, certainty, thresholds(threshold or []))
    ranks = join_ranks(device, None)
    try:
        with ranks.first_speaks():
            opened = None if model is None else ranks.agree(lambda: load_model(model, ranks.device, said))
            how = None if opened is None else Judging(opened.embed, opened.image_size, batch_size, ranks, flip)
            told = look_through(asked, opened, how, ranks)
        if told is not None:
            echo(told)
    finally:
        leave_ranks(ranks)


def thresholds(texts: list[str]) -> dict[str, float]:
    """What `--threshold KIND=NUMBER` says, by kind.

    Raises:
        UserError: no such kind, no number, or a kind twice.
    """
    from math import isfinite

    from dist_train.clean.finding import KINDS
    from dist_train.errors import UserError

    found: dict[str, float] = {}
    for text in texts:
        kind, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if kind not in KINDS or not isfinite(number):
            raise UserError(f"--threshold {text}: expected KIND=NUMBER, with a kind of {', '.join(KINDS)}")
        if kind in found:
            raise UserError(f"--threshold {text}: {kind} has one already")
        found[kind] = number
    return found


def _apply(path: Path, findings: Path, out: Path, exceptions: Path | None) -> None:
    from data_prep.clean.apply import apply_findings

    try:
        cleaned = apply_findings(path, findings, out, exceptions)
    except KeyboardInterrupt:
        echo(f"{out}: nothing of it is left; the same command begins again", err=True)
        raise
    echo(f"{out}: {cleaned}")
