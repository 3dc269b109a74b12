"""One export: the forms that were asked for, written beside each other and measured."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dist_train.checkpoint.compatibility import COMPATIBLE_KEY, compatible_with
from dist_train.checkpoint.load import found_checkpoint, load_backbone
from dist_train.checkpoint.store import Progress
from dist_train.config import RunConfig
from dist_train.data.aligner import ALIGNER_KEY
from dist_train.data.manifest import MANIFEST_NAME
from dist_train.errors import UserError
from dist_train.evaluate.bin import VerificationSet, read_bin
from dist_train.evaluate.calibration import THRESHOLDS_KEY, WEIGHTS_KEY, Owner, read_calibration
from dist_train.evaluate.config import check_names
from dist_train.evaluate.verification import check_pairs
from dist_train.export.convention import Convention
from dist_train.export.forms import REFERENCE, Figures, Form, measure_forms, write_figures
from dist_train.export.onnx import export_onnx, half_inside
from dist_train.export.pictures import stored_pictures, verification_pictures
from dist_train.export.program import export_program
from dist_train.export.quantize import MIN_PICTURES, quantize_dynamic, quantize_static
from dist_train.export.runtime import OnnxModel
from dist_train.export.sensitivity import LayerCost, rank_layers
from dist_train.export.tensorrt import TensorRtModel, build_engine, open_tensorrt
from dist_train.export.train_int8 import LEAST_STEPS, check_pictures, train_int8
from dist_train.export.triton_repository import check_repository, write_repository
from dist_train.run_files import LOCK_NAME, METADATA_NAME, ONNX_NAME
from dist_train.runtime.extras import require
from dist_train.runtime.lock import is_held, only_job
from dist_train.runtime.version import version_of
from dist_train.runtime.written import remove_temporaries, write_failures
from dist_train.weights.digest import digest_weights

_ONNX_ENDINGS = (".onnx", ".float16.onnx", ".int8.onnx", ".int8-dynamic.onnx", ".int8-trained.onnx")
_ENDINGS = (*_ONNX_ENDINGS, ".pt2", ".engine", ".export.json")


@dataclass(frozen=True)
class ExportJob:
    """What `headcount export` was asked for; the options of that command."""

    run: Path
    output: Path | None = None
    opset: int = 18
    normalize_inside: bool = False
    int8: tuple[str, ...] = ()
    calibrate: Path | None = None
    calibration_images: int = 256
    steps: int = 1000
    tensorrt: bool = False
    pt2: bool = False
    sets: tuple[Path, ...] = ()
    check_images: int = 128
    calibration: Path | None = None
    float16: bool = False
    batch: int | None = None
    sensitivity: bool = False
    float_layers: int = 0
    triton: Path | None = None


@dataclass
class Exported:
    """What came of it.

    Attributes:
        figures: of the original and of each form.
        json_path: the figures as a file.
        notes: what a user should know of them.
        costs: what each layer costs in int8, the dearest first, where that was asked for.
        left_float: names of those that stayed in float32.
    """

    figures: list[Figures]
    json_path: Path
    notes: list[str] = field(default_factory=list)
    costs: list[LayerCost] = field(default_factory=list)
    left_float: list[str] = field(default_factory=list)


def export_forms(job: ExportJob) -> Exported:
    """Write the forms and measure them. What cannot work is found before anything is written.

    Raises:
        UserError: options that do not go together, no such checkpoint or set, TensorRT without a GPU.
        WorkError: a damaged checkpoint or picture, or a place that cannot be written.
    """
    _check(job)
    if job.tensorrt:
        open_tensorrt()
    sets = [read_bin(path) for path in job.sets]
    for each in sets:
        check_pairs(each)
    backbone, config, progress = load_backbone(job.run)
    calibration = _calibration(job, progress.image_size)
    path = job.output or _default_output(job.run, progress)
    weights = digest_weights(backbone)
    origin = {"run": config.run_dir.name, "step": str(progress.step), WEIGHTS_KEY: weights}
    if job.calibration is not None:
        origin[THRESHOLDS_KEY] = read_calibration(job.calibration, Owner(str(job.run), weights)).to_text()
    if progress.aligner is not None:
        origin[ALIGNER_KEY] = progress.aligner.to_text()
    if older := compatible_with(found_checkpoint(job.run)):
        origin[COMPATIBLE_KEY] = older
    with _only_export(path):
        written = export_onnx(
            backbone,
            progress.image_size,
            path,
            normalize_inside=job.normalize_inside,
            opset=job.opset,
            origin=origin,
            batch=job.batch,
        )
        convention = written.convention
        forms = [Form("pytorch float32", backbone), Form(REFERENCE, OnnxModel(path, as_written=True), path)]
        costs: list[LayerCost] = []
        left_float: list[str] = []
        if job.float16:
            target = path.with_name(f"{path.stem}.float16.onnx")
            _write_half(job, backbone, progress.image_size, target, origin)
            forms.append(Form("onnx float16", OnnxModel(target, as_written=True), target))
        if calibration is not None:
            target = path.with_name(f"{path.stem}.int8.onnx")
            if job.sensitivity:
                costs = rank_layers(path, convention, calibration, job.batch)
                left_float = [each.node for each in costs[: job.float_layers]]
            quantize_static(path, target, convention, calibration, left_float=left_float, batch=job.batch)
            forms.append(Form("onnx int8 static", OnnxModel(target, as_written=True), target))
        if "dynamic" in job.int8:
            target = path.with_name(f"{path.stem}.int8-dynamic.onnx")
            quantize_dynamic(path, target)
            forms.append(Form("onnx int8 dynamic", OnnxModel(target, as_written=True), target))
        if "trained" in job.int8:
            target = path.with_name(f"{path.stem}.int8-trained.onnx")
            _write_trained(job, backbone, config, progress.image_size, target, origin)
            forms.append(Form("onnx int8 trained", OnnxModel(target, as_written=True), target))
        if job.pt2:
            target = path.with_suffix(".pt2")
            export_program(backbone, convention, target, origin)
            forms.append(Form("torch.export float32", _program(target, convention), target))
        if job.tensorrt:
            target = path.with_suffix(".engine")
            plain = Convention.of_ours(convention.image_size, convention.embedding_dim)
            build_engine(backbone, plain, target)
            forms.append(Form("tensorrt float16", TensorRtModel(target, plain), target))
        if job.triton is not None:
            write_repository(path, job.triton)
        pictures, source = _pictures(job, config, sets, progress.image_size)
        figures = measure_forms(forms, progress.image_size, pictures, sets, flip=config.evaluate.flip)
        done = Exported(figures, path.with_name(f"{path.stem}.export.json"), costs=costs, left_float=left_float)
        if pictures is None:
            done.notes.append("no pictures to compare the forms on; give --sets FILE.bin")
        elif len(pictures) < job.check_images:
            done.notes.append(f"{source} has only {len(pictures)} pictures to compare on")
        about = _about(job, progress, origin, pictures, source)
        if costs:
            about["sensitivity"] = [vars(each) | {"stays_float": each.node in left_float} for each in costs]
        write_figures(done.json_path, figures, about)
    return done


@contextmanager
def _only_export(path: Path) -> Iterator[None]:
    """Be the only export to `path`, without what exports to it that were killed left there.

    Raises:
        UserError: another process exports to it.
        WorkError: its directory cannot be written to.
    """
    lock = path.with_name(f".{path.stem}.export.lock")
    with ExitStack() as held:
        with write_failures(f"export to {path}"):
            held.enter_context(only_job(lock, path))
            held.callback(lock.unlink, missing_ok=True)
            if not is_held(path.parent / LOCK_NAME):  # a run that ends may be writing its model there
                for ending in _ENDINGS:
                    remove_temporaries(path.parent, f"{escape(path.stem + ending)}.*")
        yield


def _write_half(job: ExportJob, backbone: nn.Module, image_size: int, target: Path, origin: dict[str, str]) -> None:
    """The float16 form."""
    _write_other(job, half_inside(backbone), image_size, target, origin | {"quantization": "float16"})


def _write_trained(
    job: ExportJob, backbone: nn.Module, config: RunConfig, image_size: int, target: Path, origin: dict[str, str]
) -> None:
    """The int8 form whose weights were trained for it."""
    flip = config.data.augment.flip
    network = train_int8(backbone, image_size, cast(Path, job.calibrate), job.steps, flip=flip)
    more = {"quantization": "int8 trained", "training_steps": str(job.steps)}
    _write_other(job, network, image_size, target, origin | more)


def _write_other(job: ExportJob, network: nn.Module, image_size: int, target: Path, origin: dict[str, str]) -> None:
    """A form with embeddings of its own, so that it states neither the run's weights nor its thresholds."""
    export_onnx(
        network,
        image_size,
        target,
        normalize_inside=job.normalize_inside,
        opset=job.opset,
        origin={key: value for key, value in origin.items() if key not in (WEIGHTS_KEY, THRESHOLDS_KEY)},
        batch=job.batch,
    )


def _check(job: ExportJob) -> None:
    by_pictures = [kind for kind in job.int8 if kind != "dynamic"]
    if by_pictures and job.calibrate is None:
        raise UserError(
            f"--int8 {by_pictures[0]}: the ranges of activations come from real pictures; give a set of shards like "
            "those that the model will see: --calibrate SET (the training set will do)"
        )
    if job.calibrate is not None and not by_pictures:
        raise UserError(
            "--calibrate: only --int8 static and --int8 trained look at pictures; add one, or leave --calibrate out"
        )
    if job.calibrate is not None and "trained" in job.int8:
        if job.steps < LEAST_STEPS:
            raise UserError(f"--steps {job.steps}: expected at least {LEAST_STEPS} to train int8 in")
        require("qat", "--int8 trained")
        check_pictures(job.calibrate)
    if job.sensitivity and "static" not in job.int8:
        raise UserError("--sensitivity: ranks the layers of --int8 static; add it, or leave --sensitivity out")
    if job.float_layers and not job.sensitivity:
        raise UserError("--float-layers: the layers that cost most are found by --sensitivity; add it")
    if job.output is not None and job.output.suffix != ".onnx":
        raise UserError(f"--output {job.output}: expected a file that ends in .onnx; other forms are named after it")
    if job.triton is not None:
        if job.batch is not None:
            raise UserError("--triton: Triton makes batches of any number of pictures; leave --batch out")
        check_repository(job.triton)
        if job.output is not None and job.output.resolve().is_relative_to(job.triton.resolve()):
            raise UserError(f"--output {job.output}: lies in --triton {job.triton}, which holds the repository alone")
    for path in job.sets:
        if not path.is_file():
            raise UserError(f"--sets {path}: expected the .bin file of a verification set")
    check_names(job.sets)


def _calibration(job: ExportJob, image_size: int) -> Tensor | None:
    if job.calibrate is None or "static" not in job.int8:
        return None
    pictures = stored_pictures(job.calibrate, image_size, job.calibration_images)
    if len(pictures) < MIN_PICTURES:
        raise UserError(
            f"--calibrate {job.calibrate}: {len(pictures)} pictures to calibrate with, expected at least "
            f"{MIN_PICTURES}; give a larger set or more --calibration-images"
        )
    return pictures


def _default_output(run: Path, progress: Progress) -> Path:
    if (run / METADATA_NAME).exists():  # one checkpoint: its run's directory, under a name of its own
        return run.resolve().parent.parent / f"model-step-{progress.step:08d}.onnx"
    return run / ONNX_NAME


def _pictures(
    job: ExportJob, config: RunConfig, sets: list[VerificationSet], image_size: int
) -> tuple[Tensor | None, str]:
    """Pictures to compare the forms on, and where they are from: rather not those of the calibration."""
    if sets:
        return verification_pictures(sets[0], image_size, job.check_images), sets[0].name
    where = job.calibrate or Path(str(config.data.path))
    if (where / MANIFEST_NAME).is_file():
        return stored_pictures(where, image_size, job.check_images, late=True), str(where)
    return None, ""


def _program(path: Path, convention: Convention) -> Callable[[Tensor], Tensor]:
    module: nn.Module = torch.export.load(path).module()

    def embed(images: Tensor) -> Tensor:
        result: Tensor = module(convention.as_taken(images))
        return result

    return embed


def _about(
    job: ExportJob, progress: Progress, origin: dict[str, str], pictures: Tensor | None, source: str
) -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxruntime")
    return {
        "run": origin["run"],
        "step": progress.step,
        "image_size": progress.image_size,
        "opset": job.opset,
        "normalize_inside": job.normalize_inside,
        "batch": job.batch,
        "pictures": 0 if pictures is None else len(pictures),
        "pictures_from": source or None,
        "cpu_threads": torch.get_num_threads(),
        "versions": {name: version_of(name) for name in packages},
    }
