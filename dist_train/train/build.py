"""From a recipe to a loop that is ready to train: every part opened, or none."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dist_train.checkpoint.checkpointer import Checkpointer
from dist_train.checkpoint.load import has_part
from dist_train.checkpoint.store import check_same_data, read_progress
from dist_train.config import RunConfig
from dist_train.contrast.momentum import MomentumEncoder
from dist_train.contrast.network import QueryNetwork
from dist_train.contrast.queue import KeyQueue, check_queue
from dist_train.data.class_counts import class_counts
from dist_train.data.loader import Loader, build_loader
from dist_train.evaluate.suite import check_sets
from dist_train.head import Head
from dist_train.objectives.build import build_objectives
from dist_train.objectives.by_source import LossBySource
from dist_train.objectives.config import ObjectiveConfig
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Conditional, Objective
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.objectives.weight_schedule import weight_at
from dist_train.replica.base import compute_dtype
from dist_train.run_files import BAD_SAMPLES_NAME
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.verdict import Verdict, reads_late
from dist_train.start.backbone import start_backbone
from dist_train.start.head import start_head
from dist_train.track.meter import Meter
from dist_train.track.stopwatch import Stopwatch
from dist_train.track.trackers import Trackers
from dist_train.train.batching import check_left, check_one_set, micro_batches, total_steps
from dist_train.train.contrast import Contrast, Length
from dist_train.train.loop import Loop
from dist_train.train.moving_average import MovingAverage
from dist_train.train.phases import check_phases
from dist_train.train.program import Program
from dist_train.train.recognition import Recognition, Term
from dist_train.train.replicas import Replicas

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a program is built in.

    Attributes:
        config: the whole recipe.
        ranks: this process among the job's.
        loader: of the batches that will come.
        accumulation: micro-batches per step.
        stopwatch: takes the times of a step's parts, for the figures.
        step: that comes first: 0, or that of the checkpoint which will be loaded.
        resumes: a checkpoint will be loaded, so that what `start` names is not read.
        started: takes figures of what the program started from, for the trackers.
        verdict: on a step's numbers, whose ruling the caller asks for; the program may make it late. None: at once.
        restores_head: the checkpoint that will be loaded has the head's rows.
    """

    config: RunConfig
    ranks: Ranks
    loader: Loader
    accumulation: int
    stopwatch: Stopwatch
    step: int
    resumes: bool
    started: dict[str, float]
    verdict: Verdict | None = None
    restores_head: bool = False


def build_recognition(setting: Setting, objectives: Mapping[str, tuple[float, Objective]] | None = None) -> Recognition:
    """The program that trains a backbone by a head over all identities, and by the recipe's objectives. A collective.

    Args:
        setting: what it is built in.
        objectives: terms of the loss that no recipe names, with their weights; the program closes them.

    Raises:
        UserError: values of the recipe that do not go together.
        WorkError: damaged files that it starts from.
    """
    config, ranks, loader = setting.config, setting.ranks, setting.loader
    verdict = setting.verdict or Verdict(ranks.device)
    gathering = Gathering(ranks, config.data, verdict)
    with ExitStack() as opened:
        head = _build_head(setting, verdict)
        if head is not None:
            opened.callback(head.close)
        torch.manual_seed(config.seed)  # the same initial backbone on every rank
        replicas = Replicas(config, loader.image_size, setting.accumulation, ranks)
        backbone = replicas.backbone()
        if not setting.resumes:
            source = start_backbone(config, backbone, loader.image_size, ranks)
            if head is not None:
                setting.started.update(start_head(config, head, backbone, loader.image_size, ranks, source))
        made = build_objectives(ObjectiveSetting(config, ranks, loader, head, gathering, setting.resumes))
        for objective in made.values():
            opened.callback(objective.close)
        terms = {name: Term(objective, partial(weight_at, config, name)) for name, objective in made.items()}
        for name, (weight, objective) in (objectives or {}).items():
            terms[name] = Term(objective, ObjectiveConfig(weight=weight).weight_at)
        decay = config.train.ema_decay
        # A copy of the plain backbone: a strategy changes what it replicates.
        average = None if decay is None else MovingAverage(backbone, decay)
        verdict.late = _late(setting) and all(isinstance(each.objective, Conditional) for each in terms.values())
        program = Recognition(
            ranks.agree(lambda: replicas.replicate(backbone, setting.step)),
            head,
            average=average,
            accumulation=setting.accumulation,
            replicas=replicas,
            step=setting.step,
            stopwatch=setting.stopwatch,
            config=config,
            terms=terms,
            gathering=gathering,
            by_source=LossBySource(config.data, gathering),
            verdict=verdict,
        )
        opened.pop_all()
    return program


def _late(setting: Setting) -> bool:
    """Whether the host may read a step's verdict later; DeepSpeed's engine waits for the device by itself."""
    asked = setting.verdict is not None
    return asked and reads_late(setting.ranks.device) and setting.config.train.strategy == "ddp"


def _build_head(setting: Setting, verdict: Verdict) -> Head | None:
    """The classifier over the set's identities, split over the ranks; None where the recipe has none. A collective."""
    config, ranks, loader = setting.config, setting.ranks, setting.loader
    section = config.at(setting.step).head
    if section is None:
        return None
    every = [recipe.head for _, recipe in config.recipes if recipe.head is not None]
    counted = any(each.needs_class_counts for each in every)
    # Agreed on by itself: the head begins with an exchange of its own, in which a rank without counts would be missing.
    counts = ranks.agree(lambda: class_counts(loader.sources, config.data.retries) if counted else None)
    return ranks.agree(
        lambda: Head(
            section,
            loader.manifest.num_classes,
            config.backbone.embedding_dim,
            group=ranks.group,
            control_group=ranks.control_group,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            seed=config.seed,
            class_counts=counts,
            later=every,
            verdict=verdict,
            draws_rows=not setting.restores_head,
        )
    )


def build_contrast(setting: Setting) -> Contrast:
    """The program that trains a backbone without labels. A collective.

    Raises:
        UserError: values of the recipe that do not go together.
        WorkError: damaged files that it starts from.
    """
    config, ranks, loader, section = setting.config, setting.ranks, setting.loader, setting.config.contrast
    samples = config.train.global_batch_size
    ranks.agree(lambda: check_queue(section, samples, loader.manifest.samples))
    torch.manual_seed(config.seed)  # the same initial network on every rank
    replicas = Replicas(config, loader.image_size, setting.accumulation, ranks)
    backbone = replicas.backbone()
    if not setting.resumes:
        start_backbone(config, backbone, loader.image_size, ranks)
    dims = config.backbone.embedding_dim, section.hidden_dim, section.projection_dim
    verdict = setting.verdict or Verdict(ranks.device)
    verdict.late = _late(setting)
    network = QueryNetwork(backbone, *dims).to(ranks.device)
    momentum_encoder = MomentumEncoder(network)  # before a strategy or a compiler changes what it is a copy of
    return Contrast(
        ranks.agree(lambda: replicas.replicate(network, setting.step)),
        network,
        momentum_encoder,
        KeyQueue(section.queue, section.projection_dim, config.seed, ranks.device) if section.queue else None,
        section=section,
        length=Length(total_steps(config, loader.steps_per_epoch), samples, setting.accumulation),
        dtype=compute_dtype(config.train.precision, ranks.device),
        seed=config.seed,
        step=setting.step,
        stopwatch=setting.stopwatch,
        verdict=verdict,
    )


PROGRAMS: Mapping[str, Callable[[Setting], Program]] = {"recognition": build_recognition, "contrast": build_contrast}
"""By the value of a recipe's `program`."""


def open_training(
    config: RunConfig,
    ranks: Ranks,
    checkpoint: Path | None = None,
    build_program: Callable[[Setting], Program] | None = None,
) -> Loop:
    """A run on this rank, to be closed; what was opened is closed again where the start fails. A collective.

    Args:
        config: the whole recipe.
        ranks: this process among the job's.
        checkpoint: where to go on from; None for a fresh start.
        build_program: makes what is trained, on every rank; None: what `program` names.

    Raises:
        UserError: batch sizes that do not divide, or a dataset that cannot be trained on.
        WorkError: a checkpoint that cannot be loaded.
    """
    ranks.agree(lambda: check_sets(config.evaluate))
    accumulation = ranks.agree(lambda: micro_batches(config, ranks.world_size))
    before = None if checkpoint is None else ranks.agree(lambda: read_progress(checkpoint))
    step, position = (before.step, before.position) if before else (0, 0)
    # Another global batch than before (--allow-changes) goes on at the next whole one.
    position += -position % config.train.global_batch_size
    with ExitStack() as opened:
        loader = ranks.agree(lambda: _open_loader(config, ranks, step, position))
        opened.callback(loader.close)
        steps = total_steps(config, loader.steps_per_epoch)
        ranks.agree(lambda: check_phases(config, steps, loader.manifest.image_size))
        digests = ranks.gather(loader.manifest.digest)
        ranks.agree(lambda: check_one_set(digests, ranks.rank, config.data.path))
        if checkpoint is not None and before is not None:
            manifest = loader.manifest
            data = (loader.image_size, manifest.num_classes, manifest.digest)
            ranks.agree(lambda: check_same_data(checkpoint, before, *data))
            ranks.agree(lambda: check_left(config, steps, before.step, before.position, checkpoint))
        meter = Meter(config.train.global_batch_size, ranks.device)
        started: dict[str, float] = {}
        resumes = checkpoint is not None
        build = build_program or PROGRAMS[config.program]
        verdict = Verdict(ranks.device)
        has_head = checkpoint is not None and ranks.agree(lambda: has_part(checkpoint, "head"))
        program = build(
            Setting(config, ranks, loader, accumulation, meter.time, step, resumes, started, verdict, has_head)
        )
        opened.callback(program.close)
        recipe = config.model_dump(mode="json")
        trackers = Trackers(config.run_dir, config.track, recipe, ranks.rank, step)
        opened.callback(trackers.close)
        if started:
            trackers.log(step, started)
        checkpointer = Checkpointer(
            config.run_dir, config.checkpoint.keep, program.parts, ranks, on_commit=trackers.checkpoint
        )
        opened.callback(checkpointer.close)
        if checkpoint is not None:
            ranks.agree(lambda: checkpointer.restore(checkpoint))
            if ranks.rank == 0:
                logger.info("resumed from %s at step %d of %d", checkpoint, step, steps)
        return Loop(
            program,
            loader,
            checkpointer,
            trackers,
            meter,
            config,
            ranks,
            verdict=verdict,
            accumulation=accumulation,
            total_steps=steps,
            step=step,
            position=position,
            opened=opened.pop_all(),
        )


def _open_loader(config: RunConfig, ranks: Ranks, step: int, position: int) -> Loader:
    return build_loader(
        config.at(step).data,
        batch_size=config.train.global_batch_size // ranks.world_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.seed,
        start_position=position,
        device=ranks.device,
        bad_samples_path=config.run_dir / BAD_SAMPLES_NAME,
        views=config.views,
    )
