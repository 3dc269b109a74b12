"""The objective by which new embeddings can be searched in galleries of an older run (Shen et al. 2020, BCT)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.backbones import memory_format
from dist_train.checkpoint.compatibility import from_digest
from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.part import HostCopy
from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.data.class_counts import class_counts
from dist_train.errors import UserError
from dist_train.evaluate.models import digest_weights
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.objectives.config import CompatibleConfig
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.ranks import Ranks
from dist_train.start.config import StartConfig
from dist_train.start.head import start_head
from dist_train.start.place import find_place

KEY = "objectives.compatible_with"
_OF_LOSS = ("margin", "m1", "m2", "m3", "scale", "easy_margin", "curricular_momentum", "adaface", "magface", "adaptive")
_OF_LOSS += ("centers_per_class", "interclass_threshold")


def build(section: CompatibleConfig, setting: ObjectiveSetting) -> "Compatible":
    """The objective that a recipe asks for. A collective.

    Raises:
        UserError: the older run is not there or does not fit.
        WorkError: it is damaged.
    """
    config, ranks, loader = setting.config, setting.ranks, setting.loader
    checkpoint, backbone, old = open_old_run(section.run, config, ranks)
    digest = digest_weights(backbone)
    settings = old_head(old, config)
    head = ranks.agree(
        lambda: Head(
            settings,
            loader.manifest.num_classes,
            config.backbone.embedding_dim,
            group=ranks.group,
            control_group=ranks.control_group,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            seed=config.seed,
            class_counts=class_counts(loader.sources) if settings.needs_class_counts else None,
        )
    )
    try:
        backbone.to(ranks.device).to(memory_format=memory_format(backbone))
        start = StartConfig(backbone=section.run, head=section.run)
        start_head(
            config.model_copy(update={"start": start}), head, backbone, loader.image_size, ranks, checkpoint, KEY
        )
    except BaseException:
        head.close()
        raise
    return Compatible(head, digest, section.run)


def open_old_run(path: Path, config: RunConfig, ranks: Ranks) -> tuple[Path, nn.Module, RunConfig]:
    """The older run's checkpoint, its network on the CPU in evaluation mode, and its recipe. A collective.

    Raises:
        UserError: it is not there, has no head, or its embeddings have another length.
        WorkError: it is damaged.
    """
    place = find_place(KEY, path, config.run_dir, "a link to one of them", ranks)

    def opened() -> tuple[nn.Module, RunConfig]:
        if not place.is_dir():
            raise UserError(
                f"{KEY} {path}: is a file; the class centers of a run are needed: give a run directory, or one checkpoint"
            )
        with torch.random.fork_rng(devices=[]):  # a network that weights are loaded into draws random ones first
            backbone, old, _ = load_backbone(place)
        if old.head is None:
            raise UserError(f"{KEY} {path}: was trained without a head (head: null), so that it has no class centers")
        there, here = old.backbone.embedding_dim, config.backbone.embedding_dim
        if there != here:
            raise UserError(
                f"{KEY} {path}: its embeddings have {there} numbers, backbone.embedding_dim is {here}, and cosines are "
                f"of embeddings of one length; give backbone.embedding_dim={there}"
            )
        return backbone, old

    return place, *ranks.agree(opened)


def old_head(old: RunConfig, new: RunConfig) -> HeadConfig:
    """The loss of the older run's head, kept and sampled as the new run's, without an optimizer's state."""
    own = new.head or HeadConfig()
    loss = {name: getattr(old.head, name) for name in _OF_LOSS}
    storage = own.storage_dir and own.storage_dir / "compatible_with"
    return own.model_copy(update=loss | {"storage_dir": storage, "optimizer": "sgd", "momentum": 0.0})


class Compatible:
    """The loss of an older run's head over the new embeddings; its class centers stand still.

    The centers are the older run's, identity by identity; identities that it did not know have the mean of their
    pictures' embeddings under the older network, which is BCT's synthesized classifier. Margin and scale are the older
    run's. The centers are not in a checkpoint, but rebuilt from the older run: what is there is how often classes were
    sampled, and the digest of the older network, by which `headcount search` knows its galleries.

    Args:
        head: with the older run's centers.
        digest: hexadecimal SHA-256 of the older network's weights.
        run: where they are from, for messages.
    """

    def __init__(self, head: Head, digest: str, run: Path) -> None:
        head.hold(True)
        self._head, self._run = head, run
        self._digest = from_digest(digest)

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._head.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        return self._head(embeddings, batch)

    def step(self, lr: float, *, measure: bool) -> None:
        """See `Objective`; nothing moves."""
        self._head.step(lr)

    def zero_grad(self) -> None:
        """See `Objective`."""
        self._head.zero_grad()

    def statistics(self) -> dict[str, float]:
        """See `Objective`: cosines of the new embeddings with the older run's centers."""
        return {name: value for name, value in self._head.statistics().items() if name.startswith("target_cosine")}

    def close(self) -> None:
        """See `Objective`."""
        self._head.close()

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        return {"model": self._digest.clone(), "choices": self._head.state_dict()["choices"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`.

        Raises:
            UserError: of another older run.
        """
        if not torch.equal(state["model"].cpu(), self._digest):
            raise UserError(
                f"{KEY} {self._run}: its network is another one than when this run began; bring that one back (a run "
                "directory stands for its newest checkpoint: name the checkpoint itself), or start a new run"
            )
        self._head.state_dict()["choices"].copy_(state["choices"])

    def snapshot(self) -> HostCopy:
        """See `Part`."""
        return HostCopy(self.state_dict())
