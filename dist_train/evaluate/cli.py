"""`headcount eval`."""

from collections.abc import Mapping, Sequence
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
from dist_train.evaluate.own_options import (
    DEFAULT_FMR,
    ByOption,
    FmrOption,
    FuseOption,
    OwnEntries,
    QualityOption,
    TemplatesOption,
    TemplateWeights,
    own_entries,
)
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from dist_train.evaluate.config import EvaluateConfig
    from dist_train.evaluate.models import Model
    from dist_train.evaluate.tables import ModelScores

_BATCH, _DEVICE = 64, "auto"  # by default


def evaluate(
    models: Annotated[
        list[Path] | None, typer.Argument(help="models to evaluate: run directories, checkpoints or .onnx files")
    ] = None,
    sets: Annotated[
        list[Path] | None,
        typer.Option(
            "--sets",
            "-s",
            help="what to evaluate on: a .bin file, a directory of IJB, or of shards, of which all pairs count where "
            "its pictures have no role; repeat for more",
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
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(
            help="directory of labelled shards, whose probes are searched for in its gallery, or, without roles, each "
            "picture among all others; repeat for more"
        ),
    ] = None,
    ignore_same: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="with --retrieval: gallery entries of a probe's own label that share this field of the .json, such as "
            "the camera, are left out",
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="with --retrieval: figures after k-reciprocal re-ranking too")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="file for the figures as JSON")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="file for an HTML report")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures in one forward pass of a rank")] = _BATCH,
    flip: Annotated[bool, typer.Option(help="whether the mirrored picture's embedding is added")] = True,
    device: Annotated[str, typer.Option(help="where the model runs: auto, cpu or cuda")] = _DEVICE,
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="list of the pairs that count in sets of shards: LFW's pairs.txt or one like it, or a .csv, .tsv or "
            ".parquet with left, right and same"
        ),
    ] = None,
    by: ByOption = None,
    quality: QualityOption = None,
    fmr: FmrOption = None,
    fuse: FuseOption = None,
    templates: TemplatesOption = TemplateWeights.SCORE,
    all_pairs: Annotated[
        list[Path] | None,
        typer.Option(
            help="directory of labelled shards of which all pairs count, whatever roles its pictures have; repeat for "
            "more"
        ),
    ] = None,
) -> None:
    """Evaluate models on verification and identification sets, several models side by side.

    The command is one process; under torchrun the pictures and the gallery are split over the ranks.

    Examples:

      headcount eval runs/quickstart --sets data/quickstart/heldout/verification.bin

      headcount eval runs/quickstart/model.onnx other.onnx -s lfw.bin -s data/heldout --report compare.html

      headcount eval w600k_r50.onnx -s lfw.bin --input-range 0..255

      headcount eval runs/faces -s sets/mine --json points.json

      headcount eval runs/faces --all-pairs sets/parted/heldout --json points.json

      headcount eval runs/faces -s sets/lfw --pairs lfw-meta/pairs.txt

      headcount eval runs/faces -s sets/IJBC -s sets/facescrub --distractors sets/megaface --json figures.json

      headcount eval runs/people --retrieval sets/market/test --ignore-same camera --no-flip --report searches.html
    """
    with quick_imports():
        from dist_train.errors import UserError
        from dist_train.evaluate.config import check_names
        from dist_train.evaluate.fuse_cli import evaluate_files
        from dist_train.evaluate.judging import Judging
        from dist_train.evaluate.kinds import result_tables
        from dist_train.evaluate.models import load_models
        from dist_train.evaluate.report import write_comparison
        from dist_train.evaluate.suite import evaluate_sets
        from dist_train.runtime.extras import require
        from dist_train.runtime.ranks import join_ranks, leave_ranks

    if report is not None:
        require("report", "--report")
    if fuse:
        _refuse_beside_fuse(
            {
                "MODELS": models,
                "--sets": sets,
                "--distractors": distractors,
                "--knn": knn,
                "--retrieval": retrieval,
                "--all-pairs": all_pairs,
                "--pairs": pairs,
                "--by": by,
                "--quality": quality,
                "--ignore-same": ignore_same,
                "--rerank": rerank,
                "--no-flip": not flip,
                "--batch-size": batch_size != _BATCH,
                "--device": device != _DEVICE,
                "--templates": templates != TemplateWeights.SCORE,
                "--input-range": input_range,
                "--input-mean": input_mean,
                "--input-std": input_std,
                "--input-color": input_color,
                "--input-size": input_size,
                "--output": output,
                "a second --fmr": len(fmr or []) > 1,
            }
        )
        evaluate_files(fuse, (fmr or [DEFAULT_FMR])[0], json_path, report)
        return
    if fmr and not (by or quality):
        raise UserError("--fmr goes with --by, --quality or --fuse; all pairs are judged at 1e-1 to 1e-6 by themselves")
    if not models:
        raise UserError("no model to evaluate; name run directories, checkpoints or .onnx files")
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    if (ignore_same is not None or rerank) and not retrieval:
        raise UserError("--ignore-same and --rerank go with --retrieval DIRECTORY")
    if not sets and not knn and not retrieval and not all_pairs:
        raise UserError("no set to evaluate on; give --sets FILE.bin or --sets DIRECTORY")
    for each in (sets or [], knn or [], retrieval or [], all_pairs or []):
        check_names(each)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    ranks = join_ranks(device, None)
    try:
        with ranks.first_speaks():
            opened = ranks.agree(lambda: _named(load_models(models, ranks.device, said)))
            searched = [{"set": path, "ignore_same": ignore_same, "rerank": rerank} for path in retrieval or []]
            own = own_entries(by or [], quality or [], fmr or [DEFAULT_FMR])
            whole = all_pairs or []
            by_kind = ranks.agree(
                lambda: _by_kind(sets or [], distractors, knn or [], searched, own, pairs, whole), "all"
            )
            ways = [
                Judging(
                    model.embed,
                    model.image_size,
                    batch_size,
                    ranks,
                    flip,
                    templates=templates.value,
                    kept={},
                    aligner=ranks.agree(model.aligner),
                )
                for model in opened
            ]
            scores = [evaluate_sets(by_kind, how).named(model.name) for model, how in zip(opened, ways, strict=True)]
        if ranks.rank != 0:
            return
        echo("\n\n".join(map(str, result_tables(scores))))
        if json_path:
            _write_json(json_path, scores, opened, flip)
        if report:
            write_comparison(report, "Evaluation", scores)
    finally:
        leave_ranks(ranks)


def _refuse_beside_fuse(asked: Mapping[str, object]) -> None:
    """Refuse what says how pictures are embedded, or on which sets: with files of embeddings that is settled.

    Raises:
        UserError: on what was asked for, by name.
    """
    from dist_train.errors import UserError

    if given := [name for name, value in asked.items() if value]:
        raise UserError(f"--fuse judges files of embeddings alone, at one --fmr; leave {', '.join(given)} out")


def _named(models: list["Model"]) -> list["Model"]:
    """Models whose names are told apart."""
    from dataclasses import replace

    names = [model.name for model in models]
    return [
        replace(model, name=f"{model.name} ({number})") if names.count(model.name) > 1 else model
        for number, model in enumerate(models, start=1)
    ]


def _by_kind(
    sets: list[Path],
    distractors: Path | None,
    knn: list[Path],
    retrieval: list[dict[str, Any]],
    own: OwnEntries,
    pairs: Path | None = None,
    whole: Sequence[Path] = (),
) -> "EvaluateConfig":
    """The sets as a recipe names them; what a path is shows in its name and in what lies there.

    Raises:
        UserError: no such set, options that do not go together, or that a recipe could not have either.
    """
    from pydantic import ValidationError

    from dist_train.errors import UserError
    from dist_train.evaluate.config import AllPairsConfig, DistractorConfig, EvaluateConfig, RetrievalConfig
    from dist_train.evaluate.ijb_layout import ijb_kind
    from dist_train.evaluate.sets import has_roles
    from dist_train.runtime.files import first_fault

    files = [path for path in sets if path.suffix == ".bin" or path.is_file()]
    layouts = [path for path in sets if path not in files and ijb_kind(path)]
    shards = [path for path in sets if path not in files and path not in layouts]
    if pairs is not None and (distractors is not None or not shards):
        wrong = "beside --distractors" if distractors else "without a directory of shards in --sets"
        raise UserError(f"--pairs {pairs} {wrong}; it lists pairs of the pictures in a set of shards")
    roles = [path for path in shards if distractors or (pairs is None and has_roles(path))]
    try:
        return EvaluateConfig(
            verification=tuple(files),
            ijb=tuple(layouts),
            identification=() if distractors else tuple(roles),
            distractors=tuple(DistractorConfig(set=path, strangers=distractors) for path in shards if distractors),
            knn=tuple(knn),
            all_pairs=(
                *(AllPairsConfig(set=path, pairs=pairs) for path in shards if path not in roles),
                *(AllPairsConfig(set=path) for path in whole),
            ),
            **own(shards),
            retrieval=tuple(RetrievalConfig.model_validate(each) for each in retrieval),
        )
    except ValidationError as error:
        raise UserError(f"what is to be evaluated: {first_fault(error)}") from error


def _write_json(path: Path, scores: list["ModelScores"], models: list["Model"], flip: bool) -> None:
    from dist_train.evaluate.figures_file import figures_of, write_figures

    write_figures(
        path,
        [
            {
                "model": each.name,
                "model_sha256": model.digest(),
                "flip": flip,
                "told": dict(model.told),
                **figures_of(each),
            }
            for each, model in zip(scores, models, strict=True)
        ],
    )
