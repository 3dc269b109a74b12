"""The commands `headcount prep align` and `headcount prep resume`."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_prep.detectors.options import DetectorOption, FaceChoice, MinScoreOption, ThresholdsOption, refuse_beside
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.engines.engine import Engine
    from data_prep.job.progress import StageBars


class EngineName(StrEnum):
    """Engines that carry a job's units to workers."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


class WandbMode(StrEnum):
    """Ways to send a job's figures to Weights & Biases."""

    DISABLED = "disabled"
    OFFLINE = "offline"
    ONLINE = "online"


_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="processes, array tasks or Ray tasks, with a core each; by default one for each core; slurm needs it",
    ),
]
_Engine = Annotated[
    EngineName,
    typer.Option("--engine", help="who does the work: this machine, a Slurm array, or the Ray cluster in RAY_ADDRESS"),
]
_Sbatch = Annotated[
    list[str] | None, typer.Option(help="further option for sbatch, e.g. partition=cpu; repeat for more")
]
_Wandb = Annotated[WandbMode, typer.Option(help="whether figures and report also go to Weights & Biases")]


class CropKind(StrEnum):
    """What a crop is cut along."""

    LANDMARKS = "landmarks"
    BOX = "box"


class NoFace(StrEnum):
    """Fates of a photo without a face."""

    DROP = "drop"
    CENTRE = "centre"


def align(
    source: Annotated[
        Path, typer.Argument(help="photos: a folder with a folder for each identity, a .rec, tars, or a table")
    ],
    out: Annotated[
        Path, typer.Argument(file_okay=False, help="directory of the set; an unfinished job in it is continued")
    ],
    image_size: Annotated[int, typer.Option(min=16, max=1024, help="side of the crops in pixels")] = 112,
    faces: Annotated[
        FaceChoice, typer.Option(help="which faces of a photo are taken; main is one that is large and near the centre")
    ] = FaceChoice.MAIN,
    crop: Annotated[
        CropKind, typer.Option(help="how a face is cut out: aligned by its five landmarks, or its box with a margin")
    ] = CropKind.LANDMARKS,
    margin: Annotated[
        float, typer.Option(min=0, max=2, help="width of the margin around a box, as a share of its longer side")
    ] = 0.1,
    no_face: Annotated[
        NoFace, typer.Option(help="what becomes of a photo without a face: drop it, or keep its centre")
    ] = NoFace.DROP,
    min_face: Annotated[
        float,
        typer.Option(min=12, help="side of the smallest face to find, in pixels of the photo after --longer-side"),
    ] = 20,
    longer_side: Annotated[
        int | None,
        typer.Option(min=12, help="larger photos are shrunk to this side in pixels for the search; by default none is"),
    ] = None,
    detector: DetectorOption = None,
    thresholds: ThresholdsOption = None,
    min_score: MinScoreOption = None,
    upright: Annotated[
        bool,
        typer.Option("--upright", help="also search photos turned by 90, 180 and 270 degrees, where no face is sure"),
    ] = False,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            exists=True,
            dir_okay=False,
            help="faces are at the points of this .csv, .tsv or .parquet, and no detector runs: path, left_eye_x, "
            "left_eye_y, right_eye_x ... right_mouth_y in pixels, perhaps left, top, right, bottom; one row a photo",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="the pictures are aligned already: copy them unchanged")] = False,
    min_images: Annotated[int, typer.Option(min=1, help="identities with fewer pictures are dropped")] = 1,
    identities: Annotated[
        Path | None, typer.Option(help="take only the people of this file: one name a line, or a people file of LFW")
    ] = None,
    labels_from: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="an older set whose identities keep their labels")
    ] = None,
    path_column: Annotated[str, typer.Option(help="column of a table with paths or addresses")] = "path",
    identity_column: Annotated[str, typer.Option(help="column of a table with identities")] = "identity",
    unit: Annotated[
        int | None, typer.Option(min=1, help="photos in a unit of work; by default it follows from their number")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the order in which photos are dealt into shards")] = 0,
    jpeg_quality: Annotated[int, typer.Option(min=50, max=100, help="JPEG quality of the crops")] = 95,
    device: Annotated[str, typer.Option(help="where the detector runs: cpu or cuda")] = "cpu",
    engine: _Engine = EngineName.LOCAL,
    workers: _Workers = None,
    sbatch: _Sbatch = None,
    wandb: _Wandb = WandbMode.DISABLED,
) -> None:
    """Find the faces in photos, align them, and write them as a sharded set for training.

    The command can be stopped at any moment; the same command continues where it was. Every photo is in the set, or
    in OUT/rejects.parquet with the reason; OUT/report.png shows photos, crops and figures. Of exact duplicates the
    first is kept. Labels number the identities in alphabetical order.

    Examples:

      headcount prep align photos/ sets/mine --min-images 5

      headcount prep align train.rec sets/ms1mv3 --keep

      headcount prep align lfw.tar sets/view1 --identities peopleDevTrain.txt --min-images 2

      headcount prep align people.csv sets/mine --path-column file --identity-column name --workers 16

      headcount prep align raw-tars/ sets/mine --longer-side 640 --min-face 40 --faces largest

      headcount prep align photos/ sets/mine --detector scrfd_2.5g_bnkps.onnx

      headcount prep align photos/ sets/mine --landmarks points.csv

      headcount prep align raw-tars/ sets/mine --engine slurm --workers 256 --sbatch partition=cpu
    """
    from data_prep.align_transform import Align
    from data_prep.detectors.file import read_detector_file
    from data_prep.detectors.open import check_scores, open_detector
    from data_prep.job.plan import JobOptions
    from data_prep.job.run import run_job
    from data_prep.landmarks.table import open_table
    from data_prep.landmarks.transform import Placed
    from data_prep.sources.name_list import open_name_list
    from data_prep.sources.open import open_source
    from data_prep.transforms import Keep, Transform

    transform: Transform
    if keep:
        refuse_beside("--keep", {"--landmarks": landmarks, "--detector": detector, "--upright": upright})
        transform = Keep(image_size=image_size)
    elif landmarks is not None:
        search = {"--thresholds": thresholds, "--longer-side": longer_side, "--upright": upright}
        refuse_beside("--landmarks", {"--detector": detector, "--min-score": min_score, **search})
        transform = Placed(
            image_size=image_size,
            table=open_table(landmarks),
            crop=crop.value,
            margin=margin,
            no_face=no_face.value,
            jpeg_quality=jpeg_quality,
        )
    else:
        check_scores(detector, thresholds, min_score)
        here = device if engine == EngineName.LOCAL else "cpu"  # other engines have GPUs where their workers are
        if detector is None and here != "cpu":
            open_detector(None, here)
        transform = Align(
            image_size=image_size,
            min_face_px=min_face,
            longer_side_px=longer_side,
            detector=detector and read_detector_file(detector, points=crop == CropKind.LANDMARKS, device=here),
            thresholds=thresholds,
            min_score=min_score,
            upright=upright or None,  # as in plans of before
            faces=faces.value,
            crop=crop.value,
            margin=margin,
            no_face=no_face.value,
            jpeg_quality=jpeg_quality,
            device=device,
        )
    options = JobOptions(
        source=open_source(source, path_column, identity_column),
        transform=transform,
        unit_rows=unit,
        seed=seed,
        min_images=min_images,
        labels_from=labels_from and labels_from.absolute(),
        identities=identities and open_name_list(identities),
    )
    chosen = _open_engine(out, engine, workers, sbatch, device)
    _carry_out(out, wandb, options.described(), lambda progress: run_job(out, options, chosen, progress))


def resume(
    out: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="directory of the set that a job makes")],
    retry: Annotated[
        bool, typer.Option("--retry", help="units that were set aside after failures are tried again")
    ] = False,
    retry_unreachable: Annotated[
        bool, typer.Option("--retry-unreachable", help="photos whose addresses could not be reached are tried again")
    ] = False,
    engine: _Engine = EngineName.LOCAL,
    workers: _Workers = None,
    sbatch: _Sbatch = None,
    wandb: _Wandb = WandbMode.DISABLED,
) -> None:
    """Continue a job with the options that it was started with.

    Examples:

      headcount prep resume sets/mine --retry

      headcount prep resume sets/mine --retry-unreachable

      headcount prep resume sets/mine --engine ray
    """
    from data_prep.job.plan import JobFiles, JobPlan
    from data_prep.job.run import resume_job

    plan = JobPlan(JobFiles(out))
    chosen = _open_engine(out, engine, workers, sbatch, getattr(plan.options.transform, "device", "cpu"))
    again = {"retry": retry, "unreachable": retry_unreachable}
    _carry_out(out, wandb, plan.described, lambda progress: resume_job(out, chosen, progress, **again))


def _open_engine(out: Path, name: EngineName, workers: int | None, sbatch: list[str] | None, device: str) -> "Engine":
    from data_prep.job.plan import JobFiles
    from dist_train.errors import UserError

    if sbatch and name != EngineName.SLURM:
        raise UserError("--sbatch goes with --engine slurm")
    if name == EngineName.SLURM:
        from data_prep.engines.slurm import SlurmEngine

        if workers is None:
            raise UserError("--engine slurm: say how many array tasks are wanted: --workers N")
        return SlurmEngine(JobFiles(out).arrays, workers, [option.removeprefix("--") for option in sbatch or []])
    if name == EngineName.RAY:
        from data_prep.engines.ray import RayEngine

        return RayEngine(workers, gpus=int(device.startswith("cuda")))
    from data_prep.engines.local import LocalEngine

    return LocalEngine(workers or len(os.sched_getaffinity(0)))


def _carry_out(out: Path, wandb: WandbMode, options: dict[str, Any], work: "Callable[[StageBars], object]") -> None:
    """Do `work`, draw the report, print the summary."""
    from data_prep.job.progress import StageBars
    from data_prep.job.report import write_report
    from data_prep.job.wandb_run import WandbRun
    from dist_train.runtime.extras import missing

    mode: Literal["online", "offline"] = "online" if wandb == WandbMode.ONLINE else "offline"
    run = None if wandb == WandbMode.DISABLED else WandbRun(out, mode, options)
    report = None
    try:
        work(StageBars(run=run))
        lack = missing("report")
        report = None if lack else write_report(out)
    finally:
        if run is not None:
            run.close(report)
    echo(f"{summary(out)}\n" + (f"look at {report}" if report else f"no picture of the job: it {lack}"))


def summary(out: Path) -> str:
    """Text with the counts of a complete set, and the reasons why inputs were left out."""
    from collections import Counter

    from data_prep.job.unit_files import read_rejects
    from dist_train.data.manifest import load_manifest
    from dist_train.data.reject import REJECTS_NAME, counted
    from dist_train.runtime.text import shown_name

    manifest = load_manifest(out)
    rejects = read_rejects(out / REJECTS_NAME)
    reasons = Counter(rejects["reason"].to_pylist())
    identities, shards = manifest.num_classes, len(manifest.shards)
    lines = [f"{out}: {manifest.samples:,} pictures of {identities:,} identities in {shards:,} shards"]
    if reasons:
        lines.append(f"left out: {counted(reasons)}; each with its reason in {out / REJECTS_NAME}")
        lines.append("e.g. " + ": ".join(shown_name(text) for text in rejects.slice(0, 1).to_pylist()[0].values()))
    return "\n".join(lines)
