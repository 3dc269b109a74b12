"""Objectives looked over before a run: what they name is there and fits; nothing is changed."""

from collections.abc import Iterator
from contextlib import closing

from dist_train.config import RunConfig
from dist_train.embed.table import SUFFIXES, EmbeddingFile
from dist_train.objectives.build import every_objective
from dist_train.objectives.compatible import KEY as COMPATIBLE
from dist_train.objectives.compatible import check_length
from dist_train.objectives.config import CompatibleConfig, DistillConfig, ObjectivesConfig
from dist_train.objectives.soft_labels import check_heads
from dist_train.objectives.still_head import OtherRun, open_other_run
from dist_train.objectives.teacher import KEY as TEACHER
from dist_train.objectives.teacher import open_teacher
from dist_train.runtime.ranks import ALONE
from dist_train.start.config import StartConfig
from dist_train.start.head import check_head


def missing_runs(config: RunConfig) -> Iterator[str]:
    """What objectives name and is not there, a line each."""
    for section in every_objective(config).values():
        if isinstance(section, DistillConfig) and not section.teacher.exists():
            yield f"{TEACHER} {section.teacher}: not there; a run does not start without it"
        if isinstance(section, CompatibleConfig) and not section.run.exists():
            yield f"{COMPATIBLE} {section.run}: not there; a run does not start without it"


def check_objectives(config: RunConfig, image_size: int, identities: int | None) -> Iterator[str]:
    """What there is to say of teachers and older runs that are there, a line each.

    Args:
        config: the recipe.
        image_size: side of its pictures in pixels.
        identities: of its set; None where that is not there.

    Raises:
        UserError: a run would refuse them.
        WorkError: damaged files.
    """
    distill, compatible = config.objectives.distill, config.objectives.compatible_with
    if distill is not None and distill.weight and distill.teacher.exists():
        yield from _about_teacher(distill, config, image_size, identities)
    if compatible is not None and compatible.weight and compatible.run.exists():
        yield from _about_older(compatible, config, identities)


def _about_teacher(section: DistillConfig, config: RunConfig, image_size: int, identities: int | None) -> Iterator[str]:
    student = config.backbone.embedding_dim
    if section.teacher.suffix in SUFFIXES:
        with closing(EmbeddingFile(section.teacher)) as file:
            dim, what = file.embedding_dim, f"{file.count:,} stored embeddings"
    else:
        teacher = open_teacher(section.teacher, config, {"data.image_size": image_size}, ALONE)
        dim, what = teacher.embedding_dim, "a network"
    projection = f", to which a learned projection leads from {student}" if section.cosine and dim != student else ""
    yield f"{TEACHER} {section.teacher}: {what}, {dim} numbers{projection}"
    if section.soft_labels:
        other = open_other_run(TEACHER, section.teacher, config, ALONE)
        check_heads("objectives.distill", config.head, other.head)
        yield from _about_identities(other, config, identities)


def _about_older(section: CompatibleConfig, config: RunConfig, identities: int | None) -> Iterator[str]:
    older = open_other_run(COMPATIBLE, section.run, config, ALONE)
    check_length(older, config.backbone.embedding_dim)
    yield from _about_identities(older, config, identities)


def _about_identities(other: OtherRun, config: RunConfig, identities: int | None) -> Iterator[str]:
    """Which identities the other run knows."""
    if identities is None:
        return
    start = StartConfig(backbone=other.path, head=other.path)
    changed = config.model_copy(update={"start": start, "backbone": other.config.backbone})
    join = check_head(changed, other.head, identities, ALONE, other.key)
    yield f"{other.key} {other.path}: identities that it knows {join.carried}, new to it {join.new}, gone {join.gone}"


def dry_objectives(config: RunConfig) -> tuple[ObjectivesConfig, list[str]]:
    """The objectives that can be tried on drawn pictures of other identities, and what is left out, for people."""
    objectives, left_out = config.objectives, []
    distill = objectives.distill
    if objectives.compatible_with is not None:
        objectives = objectives.model_copy(update={"compatible_with": None})
        left_out.append("compatible_with")
    if distill is not None and distill.soft_labels:
        distill = distill.model_copy(update={"soft_labels": 0.0})
        left_out.append("distill.soft_labels")
    if distill is not None and (distill.teacher.suffix in SUFFIXES or not distill.teacher.exists()):
        distill = None
        left_out[:] = [*(each for each in left_out if each != "distill.soft_labels"), "distill"]
    elif distill is not None and not (distill.cosine or distill.relations):
        distill = None
    return objectives.model_copy(update={"distill": distill}), left_out
