"""A head whose rows are another run's, identity by identity, and stand still."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dist_train.backbones import memory_format
from dist_train.checkpoint.load import load_backbone
from dist_train.config import RunConfig
from dist_train.data.class_counts import class_counts
from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.ranks import Ranks
from dist_train.start.config import StartConfig
from dist_train.start.head import start_head
from dist_train.start.place import find_place

_OF_LOSS = (
    *("margin", "m1", "m2", "m3", "scale", "easy_margin", "curricular_momentum", "adaface", "magface", "adaptive"),
    *("centers_per_class", "interclass_threshold"),
)


class OtherRun(NamedTuple):
    """A run that a head's rows are of.

    Attributes:
        key: of the recipe that names it.
        path: what the key names.
        checkpoint: that was found there.
        backbone: its network, on the CPU in evaluation mode.
        image_size: side in pixels of the pictures that it was trained on.
        config: its recipe.
        head: the section of that recipe.
    """

    key: str
    path: Path
    checkpoint: Path
    backbone: nn.Module
    image_size: int
    config: RunConfig
    head: HeadConfig


def open_other_run(key: str, path: Path, config: RunConfig, ranks: Ranks) -> OtherRun:
    """The run at `path`, opened on every rank. A collective; it draws no random number.

    Args:
        key: of the recipe that names it.
        path: a run directory, or one checkpoint.
        config: of the run that starts.
        ranks: this process among the job's.

    Raises:
        UserError: it is not there, is the run that starts, or has no head.
        WorkError: it is damaged.
    """
    place = find_place(key, path, config.run_dir, "a link to one of them", ranks)

    def opened() -> OtherRun:
        if not place.is_dir():
            raise UserError(
                f"{key} {path}: is a file, and the class centers of a run are needed; give a run directory, or one "
                "checkpoint"
            )
        with torch.random.fork_rng(devices=[]):  # a network that weights are loaded into draws random ones first
            backbone, other, progress = load_backbone(place)
        if other.head is None:
            raise UserError(
                f"{key} {path}: was trained without a head (head: null), so that it has no class centers; give another"
            )
        return OtherRun(key, path, place, backbone, progress.image_size, other, other.head)

    return ranks.agree(opened)


def build_still_head(other: OtherRun, setting: ObjectiveSetting) -> Head:
    """A head with the loss and the rows of another run, kept and sampled as the new run's. A collective.

    Identities that the other run did not know have the mean of their pictures' embeddings under its network, at the
    size that it was trained on: rows are the same in whatever phase of the new run they are built.

    Args:
        other: the run; its network goes to this rank's device.
        setting: what the objective is built in.

    Raises:
        UserError: names that are missing, or of which none is in both sets.
        WorkError: damaged files.
    """
    config, ranks, loader = setting.config, setting.ranks, setting.loader
    settings = _still_section(other.head, config.head or HeadConfig(), other.key)
    # Agreed on by itself: the head begins with an exchange of its own, in which a rank without counts would be missing.
    needed = settings.needs_class_counts
    counts = ranks.agree(lambda: class_counts(loader.sources, config.data.retries) if needed else None)
    head = ranks.agree(
        lambda: Head(
            settings,
            loader.manifest.num_classes,
            other.config.backbone.embedding_dim,
            group=ranks.group,
            control_group=ranks.control_group,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            seed=config.seed,
            class_counts=counts,
            verdict=setting.gathering.verdict,
        )
    )
    try:
        head.hold(True)
        backbone = other.backbone.to(ranks.device).to(memory_format=memory_format(other.backbone))
        changed = config.model_copy(update={"start": StartConfig(backbone=other.path, head=other.path)})
        start_head(changed, head, backbone, other.image_size, ranks, other.checkpoint, other.key)
    except BaseException:
        head.close()
        raise
    return head


def _still_section(other: HeadConfig, own: HeadConfig, key: str) -> HeadConfig:
    """The loss of the other head; storage and sampling of this run's; no optimizer's state."""
    loss = {name: getattr(other, name) for name in _OF_LOSS}
    storage = own.storage_dir and own.storage_dir / key.rpartition(".")[2]
    return own.model_copy(update=loss | {"storage_dir": storage, "optimizer": "sgd", "momentum": 0.0})
