"""`headcount prep align` and `headcount prep resume`."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.engines.engine import Engine
    from data_prep.job.progress import Progress


class EngineName(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


class WandbMode(StrEnum):
    """Where figures go besides."""

    DISABLED = "disabled"
    OFFLINE = "offline"
    ONLINE = "online"


_Workers = Annotated[
    int | None,
    typer.Option(min=1, help="processes, array tasks or Ray tasks, a core each; default: one a core, not for slurm"),
]
_Engine = Annotated[
    EngineName, typer.Option("--engine", help="who works: this machine, a Slurm array, or the cluster in RAY_ADDRESS")
]
_Sbatch = Annotated[list[str] | None, typer.Option(help="further option of sbatch, e.g. partition=cpu")]
_Wandb = Annotated[WandbMode, typer.Option(help="figures and report in Weights & Biases too")]


class FaceChoice(StrEnum):
    """Which of a photo's faces."""

    MAIN = "main"
    LARGEST = "largest"
    SUREST = "surest"
    CENTRAL = "central"
    ALL = "all"


class CropKind(StrEnum):
    """What crops follow."""

    LANDMARKS = "landmarks"
    BOX = "box"


class NoFace(StrEnum):
    """What becomes of a photo without a face."""

    DROP = "drop"
    CENTRE = "centre"


def align(
    source: Annotated[Path, typer.Argument(help="photos: folder per identity, .rec, .tar or folder of them, table")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="directory of the set; an unfinished job is taken up")],
    image_size: Annotated[int, typer.Option(min=16, max=1024, help="side of the crops, pixels")] = 112,
    faces: Annotated[
        FaceChoice, typer.Option(help="which of a photo's faces; main: large and near the centre")
    ] = FaceChoice.MAIN,
    crop: Annotated[CropKind, typer.Option(help="five-point alignment, or the box with a margin")] = CropKind.LANDMARKS,
    margin: Annotated[float, typer.Option(min=0, max=2, help="around a box, share of its longer side")] = 0.1,
    no_face: Annotated[NoFace, typer.Option(help="photos without a face")] = NoFace.DROP,
    min_face: Annotated[float, typer.Option(min=12, help="smallest face, pixels of the photo as it is searched")] = 20,
    longer_side: Annotated[
        int | None, typer.Option(min=12, help="search larger photos at this size, pixels; default: as they are")
    ] = None,
    thresholds: Annotated[
        tuple[float, float, float], typer.Option(help="least scores of the three networks, between 0 and 1")
    ] = (0.6, 0.7, 0.7),
    keep: Annotated[bool, typer.Option("--keep", help="pictures are aligned: move them as they are")] = False,
    min_images: Annotated[int, typer.Option(min=1, help="drop identities with fewer pictures")] = 1,
    identities: Annotated[
        Path | None, typer.Option(help="take only these: a text file of a name a line, or a people file of LFW")
    ] = None,
    labels_from: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="a set whose identities keep their labels")
    ] = None,
    path_column: Annotated[str, typer.Option(help="of a table: paths or addresses")] = "path",
    identity_column: Annotated[str, typer.Option(help="of a table: identities")] = "identity",
    unit: Annotated[
        int | None, typer.Option(min=1, help="photos of a unit of work; default: from their number")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the order that photos are dealt into shards in")] = 0,
    jpeg_quality: Annotated[int, typer.Option(min=50, max=100, help="of the crops")] = 95,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    engine: _Engine = EngineName.LOCAL,
    workers: _Workers = None,
    sbatch: _Sbatch = None,
    wandb: _Wandb = WandbMode.DISABLED,
) -> None:
    """Find the faces in photos, align them, and write them as a sharded set for training.

    Stopped at any moment, the same command goes on where it was. Every photo is accounted for: in the set, or in
    OUT/rejects.parquet with the reason; OUT/report.png shows photos, crops and figures. Exact duplicates are kept
    once; labels are the identities' places in alphabetical order.

    Examples:

      headcount prep align photos/ sets/mine --min-images 5

      headcount prep align train.rec sets/ms1mv3 --keep

      headcount prep align lfw.tar sets/view1 --identities peopleDevTrain.txt --min-images 2

      headcount prep align people.csv sets/mine --path-column file --identity-column name --workers 16

      headcount prep align raw-tars/ sets/mine --longer-side 640 --min-face 40 --faces largest

      headcount prep align raw-tars/ sets/mine --engine slurm --workers 256 --sbatch partition=cpu
    """
    from data_prep.align_transform import Align
    from data_prep.job.plan import JobOptions
    from data_prep.job.run import run_job
    from data_prep.sources.name_list import open_name_list
    from data_prep.sources.open import open_source
    from data_prep.transforms import Keep, Transform

    transform: Transform = (
        Keep(image_size=image_size)
        if keep
        else Align(
            image_size=image_size,
            min_face_px=min_face,
            longer_side_px=longer_side,
            thresholds=thresholds,
            faces=faces.value,
            crop=crop.value,
            margin=margin,
            no_face=no_face.value,
            jpeg_quality=jpeg_quality,
            device=device,
        )
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
    out: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="directory of a job's set")],
    retry: Annotated[bool, typer.Option("--retry", help="try the units that were set aside again")] = False,
    engine: _Engine = EngineName.LOCAL,
    workers: _Workers = None,
    sbatch: _Sbatch = None,
    wandb: _Wandb = WandbMode.DISABLED,
) -> None:
    """Bring a job to its end with the options that it was begun with.

    Examples:

      headcount prep resume sets/mine --retry

      headcount prep resume sets/mine --engine ray
    """
    from data_prep.job.plan import Layout, Plan
    from data_prep.job.run import resume_job

    plan = Plan(Layout(out))
    chosen = _open_engine(out, engine, workers, sbatch, getattr(plan.options.transform, "device", "cpu"))
    _carry_out(out, wandb, plan.described, lambda progress: resume_job(out, chosen, progress, retry=retry))


def _open_engine(out: Path, name: EngineName, workers: int | None, sbatch: list[str] | None, device: str) -> "Engine":
    from data_prep.job.plan import Layout
    from dist_train.errors import UserError

    if sbatch and name != EngineName.SLURM:
        raise UserError("--sbatch goes with --engine slurm")
    if name == EngineName.SLURM:
        from data_prep.engines.slurm import SlurmEngine

        if workers is None:
            raise UserError("--engine slurm: say how many array tasks are wanted: --workers N")
        return SlurmEngine(Layout(out).arrays, workers, [option.removeprefix("--") for option in sbatch or []])
    if name == EngineName.RAY:
        from data_prep.engines.ray import RayEngine

        return RayEngine(workers, gpus=int(device.startswith("cuda")))
    from data_prep.engines.local import LocalEngine

    return LocalEngine(workers or len(os.sched_getaffinity(0)))


def _carry_out(out: Path, wandb: WandbMode, options: dict[str, Any], work: "Callable[[Progress], object]") -> None:
    """Do `work`, draw the report, say what came out."""
    from data_prep.job.progress import Progress
    from data_prep.job.report import write_report
    from data_prep.job.wandb_run import WandbRun
    from dist_train.runtime.extras import missing

    mode: Literal["online", "offline"] = "online" if wandb == WandbMode.ONLINE else "offline"
    run = None if wandb == WandbMode.DISABLED else WandbRun(out, mode, options)
    report = None
    try:
        work(Progress(run=run))
        lack = missing("report")
        report = None if lack else write_report(out)
    finally:
        if run is not None:
            run.close(report)
    echo(f"{summary(out)}\n" + (f"look at {report}" if report else f"no picture of the job: it {lack}"))


def summary(out: Path) -> str:
    """What a complete set holds, and why inputs were left out."""
    from collections import Counter

    from data_prep.job.unit_files import read_rejects
    from dist_train.data.manifest import load_manifest
    from dist_train.data.tars import shown

    manifest = load_manifest(out)
    rejects = read_rejects(out / "rejects.parquet")
    reasons = Counter(rejects["reason"].to_pylist())
    identities, shards = manifest.num_classes, len(manifest.shards)
    lines = [f"{out}: {manifest.samples:,} pictures of {identities:,} identities in {shards:,} shards"]
    if reasons:
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        lines.append(f"left out: {told}; each with its reason in {out / 'rejects.parquet'}")
        lines.append("e.g. " + ": ".join(shown(text) for text in rejects.slice(0, 1).to_pylist()[0].values()))
    return "\n".join(lines)
