"""A recipe looked over before its run, the dataset at hand or not: `headcount train CONFIG --check`."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from dist_train.backbones import build_backbone
from dist_train.config import RunConfig
from dist_train.data.assemble import BatchPlan, build_order
from dist_train.data.manifest import Manifest
from dist_train.data.remote import is_remote
from dist_train.data.sources import Sources, open_sources
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.suite import absent_sets, check_sets, present_sets
from dist_train.head.config import HeadConfig
from dist_train.objectives.check import check_objectives, missing_runs
from dist_train.replica.zero import check_options
from dist_train.runtime.extras import missing
from dist_train.runtime.ranks import ALONE
from dist_train.runtime.terminal import echo
from dist_train.start.backbone import find_start
from dist_train.start.head import check_head
from dist_train.train.batching import micro_batches, total_steps
from dist_train.train.dry_step import DryStep, dry_step
from dist_train.train.phases import check_phases
from launch.plan import largest
from launch.plan_hardware import GIB, GPUS, backbone_cost
from launch.plan_model import Setup, fits, gpu_memory

IMAGE_SIZE_PX = 112  # where neither the recipe nor a set says another
GPUS_PER_NODE = 8
NETWORK_GB_S = 25.0  # between machines; memory does not depend on it


def check(config: RunConfig) -> None:
    """Print what there is to say about a recipe whose keys and values are valid: sets, steps, memory, a small step.

    What is only missing here is a warning, since a recipe is often written elsewhere than it runs.

    Raises:
        UserError: a run would refuse the recipe, or a set that is there.
        WorkError: the small step failed.
    """
    echo("configuration: every key and value is valid")
    if config.train.strategy != "ddp":
        check_options(config.train, torch.float16 if config.train.precision == "float16" else torch.bfloat16)
    warnings = list(_missing(config))
    sources: Sources | None = None
    if not any(_absent(path) for path in _training_sets(config)):
        try:
            sources = open_sources(config.data)
        except WorkError as error:  # a server that cannot be reached from here
            warnings.append(f"{error}; the rest is checked without it")
    check_sets(present_sets(config.evaluate))
    steps = _steps(config, sources) if sources else None
    every = config.train.steps or (steps and total_steps(config, steps))
    if every and config.optimizer.warmup_steps >= every:
        warnings.append(
            f"optimizer.warmup_steps {config.optimizer.warmup_steps:,} of {every:,} steps: the peak is never reached"
        )
    for warning in warnings:
        echo(f"warning: {warning}")
    manifest = sources.manifest if sources else None
    if manifest:
        echo(_about_data(config, manifest, steps, every))
    image_size = config.data.image_size or (manifest.image_size if manifest else IMAGE_SIZE_PX)
    stored_px = manifest.image_size if manifest else IMAGE_SIZE_PX
    check_phases(config, every or sys.maxsize, stored_px)
    sizes = {begin: recipe.data.image_size or stored_px for begin, recipe in config.recipes}
    for line in _about_memory(config, manifest.num_classes if manifest else None, sizes):
        echo(line)
    if config.start.backbone is not None and config.start.backbone.exists():
        echo(_about_start(config, image_size))
    if config.head and config.start.head is not None and config.start.head.exists() and manifest:
        join = check_head(config, config.head, manifest.num_classes, ALONE)
        echo(f"start.head {config.start.head}: identities carried {join.carried}, new {join.new}, gone {join.gone}")
    identities = manifest.num_classes if manifest else None
    about = (check_objectives(recipe, sizes[begin], identities) for begin, recipe in config.recipes)
    for line in dict.fromkeys(chain.from_iterable(about)):  # phases often have the same ones
        echo(line)
    for begin, recipe in _unlike(config):
        echo(_about_step(recipe, _phase(config, begin), sizes[begin], dry_step(recipe, sizes[begin])))
    plural = "" if len(warnings) == 1 else "s"
    echo(f"check passed with {len(warnings)} warning{plural}" if warnings else "check passed")


def _unlike(config: RunConfig) -> Iterator[tuple[int, RunConfig]]:
    """The recipes that hold one after another; of those whose steps do the same work, the first."""
    seen: list[tuple[object, ...]] = []
    for begin, recipe in config.recipes:
        work = (recipe.head, recipe.objectives, recipe.data.augment, recipe.data.image_size, recipe.start.freeze)
        if work not in seen:
            seen.append(work)
            yield begin, recipe


def _phase(config: RunConfig, begin: int) -> str:
    """Which steps are spoken of, where there are phases."""
    return f" for steps {begin:,} and later" if config.phases else ""


def _about_step(config: RunConfig, phase: str, image_size: int, step: DryStep | None) -> str:
    """What the small step gave."""
    if step is None:
        return f"no dry step{phase}: without the run's own identities and pictures there is nothing to train by"
    left_out = f"; left out: {', '.join(step.left_out)}" if step.left_out else ""
    return (
        f"dry step{phase} on the CPU in float32: {config.backbone.name}, {_losses(config)}, {config.optimizer.name}, "
        f"{step.pictures} drawn pictures of {image_size} px: loss {step.loss:.2f}, gradient norm "
        f"{step.gradient_norm:.3g}, {step.seconds:.1f} s{left_out}"
    )


def _losses(config: RunConfig) -> str:
    if config.program == "contrast":
        return config.program
    margin = [] if config.head is None else [config.head.margin]
    return " + ".join([*margin, *config.objectives.given()])


def _training_sets(config: RunConfig) -> list[str]:
    return [config.data.path, *(source.path for source in config.data.mix)]


def _absent(path: str) -> bool:
    return not is_remote(path) and not Path(path).exists()


def _missing(config: RunConfig) -> Iterator[str]:
    for number, path in enumerate(_training_sets(config)):
        if _absent(path):
            key = f"data.mix, set {number}: " if number else "data.path "
            yield f"{key}{path}: no such directory; the rest is checked without it"
    for key, absent in absent_sets(config.evaluate):
        yield f"{key} {absent}: not there; a run does not start without it"
    if config.start.backbone is not None and not config.start.backbone.exists():
        yield f"start.backbone {config.start.backbone}: not there; a run does not start without it"
    yield from missing_runs(config)
    if config.train.device == "cuda" and not torch.cuda.is_available():
        yield "train.device=cuda: no GPU on this machine"
    if config.export.onnx and (lack := missing("export")):
        yield f"export.onnx {lack}; a run with export.onnx=true does not start without it"
    if config.train.strategy != "ddp":
        yield f"train.strategy={config.train.strategy} works on several ranks only; the dry step leaves it out"


def _steps(config: RunConfig, sources: Sources) -> int | None:
    """Steps of an epoch; None where that takes every label of the set to know.

    Raises:
        UserError: a batch that the data cannot fill.
    """
    if config.data.images_per_class:
        return None
    batch = config.train.global_batch_size
    order = build_order(BatchPlan(sources.sets, config.data, config.seed, batch, sources.manifest.image_size))
    return order.epoch_length // batch


def _about_data(config: RunConfig, manifest: Manifest, steps: int | None, every: int | None) -> str:
    text = f"data: {manifest.num_classes:,} identities, {manifest.samples:,} pictures of {manifest.image_size} px"
    if steps:
        text += f"; {steps:,} steps an epoch, {every:,} in all, of them {config.optimizer.warmup_steps:,} of warm-up"
    return text


def _about_start(config: RunConfig, image_size: int) -> str:
    """How what is there of `start.backbone` fits.

    Raises:
        UserError: it does not.
        WorkError: it is damaged.
    """
    with torch.device("meta"):
        network = build_backbone(config.backbone, image_size).state_dict()
    source, fit = find_start(config, network, image_size, ALONE)
    return f"start.backbone: {len(fit.tensors)} of {len(network)} tensors from {source}, names of {fit.source}" + (
        f"; left out:{misfits}" if (misfits := fit.misfits()) else ""
    )


def _about_memory(config: RunConfig, identities: int | None, sizes: Mapping[int, int]) -> Iterator[str]:
    """What the plan model says of GPUs of each kind, for the phase that takes most memory.

    Args:
        config: the whole recipe.
        identities: of the set; None where it is not there.
        sizes: by first step of each phase, the side of its pictures in pixels.

    Raises:
        UserError: no number of ranks divides the batch.
    """
    if config.train.device == "cpu":
        return
    alone = config.head is None  # a head of one identity stands for none
    identities = 1 if alone else identities
    jobs = {
        begin: plan_setup(recipe, recipe.head or HeadConfig(), identities or 1, sizes[begin])
        for begin, recipe in config.recipes
    }
    costliest = max(jobs, key=lambda begin: sum(gpu_memory(jobs[begin]).values()))
    setup = jobs[costliest]
    which = f"{_phase(config, costliest)}, which take most memory" if config.phases else ""
    yield (
        f"plan{which} for {setup.gpus} GPUs of one machine, {setup.batch} pictures a GPU and pass"
        + (f", {setup.accumulation} passes" if setup.accumulation > 1 else "")
        + (f", {setup.views} views of each" if setup.views > 1 else "")
        + " (`headcount launch plan` tells more):"
    )
    for name, gpu in GPUS.items():
        half = gpu.in_half(config.train.precision)
        job = dataclasses.replace(setup, gpu=gpu, memory_gib=gpu.memory_gib, half=half)
        room = largest(job)
        needs = ""
        if identities:
            verdict = "fits" if fits(job) else "DOES NOT FIT"
            needs = f"needs {sum(gpu_memory(job).values()) / GIB:.1f} GiB, {verdict}; "
        yield f"  {name}, {gpu.memory_gib:g} GiB: " + (
            needs.removesuffix("; ") if alone else f"{needs}room for {room:,} identities"
        )


def plan_setup(config: RunConfig, head: HeadConfig, identities: int, image_size: int, gpus: int | None = None) -> Setup:
    """The job of a recipe, to be planned.

    Args:
        config: the recipe.
        head: its head.
        identities: of its set.
        image_size: side of its pictures in pixels.
        gpus: of the job; None: as many of one machine as divide its batch.
    """
    gpus, accumulation = _ranks(config) if gpus is None else (gpus, micro_batches(config, gpus))
    gpu = GPUS["h100"]
    return Setup(
        identities=identities,
        gpus=gpus,
        gpus_per_node=GPUS_PER_NODE,
        gpu=gpu,
        memory_gib=gpu.memory_gib,
        network_gb_s=NETWORK_GB_S,
        backbone=backbone_cost(config.backbone, image_size),
        embedding_dim=config.backbone.embedding_dim,
        image_size=image_size,
        batch=config.train.global_batch_size // (gpus * accumulation),
        accumulation=accumulation,
        half=gpu.in_half(config.train.precision),
        strategy=config.train.strategy,
        moments=2 if config.optimizer.name == "adamw" else 1,
        head=head,
        views=config.views,
        averaged=config.train.ema_decay is not None,
    )


def _ranks(config: RunConfig) -> tuple[int, int]:
    """Ranks, at most those of a machine, and the forward passes of a step on them."""
    for ranks in range(GPUS_PER_NODE, 1, -1):
        try:
            return ranks, micro_batches(config, ranks)
        except UserError:
            continue
    return 1, micro_batches(config, 1)
