"""The objective by which new embeddings can be searched in galleries of an older run (Shen et al. 2020, BCT)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.checkpoint.compatibility import from_digest
from dist_train.checkpoint.part import HostCopy
from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.objectives.config import CompatibleConfig
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Conditional
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.objectives.still_head import OtherRun, build_still_head, open_other_run
from dist_train.weights.digest import digest_weights

KEY = "objectives.compatible_with"


def build(section: CompatibleConfig, setting: ObjectiveSetting) -> "Compatible":
    """The objective that a recipe asks for. A collective.

    Raises:
        UserError: the older run is not there or does not fit.
        WorkError: it is damaged.
    """
    older = open_other_run(KEY, section.run, setting.config, setting.ranks)
    with setting.ranks.first_speaks():
        check_length(older, setting.config.backbone.embedding_dim)
    digest = digest_weights(older.backbone)
    return Compatible(build_still_head(older, setting), setting.gathering, digest, section.run)


def check_length(older: OtherRun, embedding_dim: int) -> None:
    """See that embeddings of both runs can be compared.

    Raises:
        UserError: they have other lengths.
    """
    there = older.config.backbone.embedding_dim
    if there != embedding_dim:
        raise UserError(
            f"{KEY} {older.path}: its embeddings have {there} numbers, backbone.embedding_dim is {embedding_dim}, and "
            f"cosines are of embeddings of one length; give backbone.embedding_dim={there}"
        )


class Compatible(Conditional):
    """The loss of an older run's head over the new embeddings; its class centers stand still.

    The centers are the older run's, identity by identity; identities that it did not know have the mean of their
    pictures' embeddings under the older network, which is BCT's synthesized classifier. Margin and scale are the older
    run's. The centers are not in a checkpoint, but rebuilt from the older run: what is there is how often classes were
    sampled, and the digest of the older network, by which `headcount search` knows its galleries.

    Args:
        head: with the older run's centers.
        gathering: says what samples weigh: those without a label, nothing.
        digest: hexadecimal SHA-256 of the older network's weights.
        run: where they are from, for messages.
    """

    def __init__(self, head: Head, gathering: Gathering, digest: str, run: Path) -> None:
        self._head, self._gathering, self._run = head, gathering, run
        self._digest = from_digest(digest)
        self._loss: Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._head.prepare(batch, self._gathering.weights(batch))

    def __call__(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        loss = self._head(embeddings, batch, self._gathering.weights(batch))
        self._loss = loss.detach()
        return loss

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Objective`; nothing moves."""
        self._head.step(lr)

    def zero_grad(self) -> None:
        """See `Objective`."""
        self._head.zero_grad()

    def statistics(self) -> dict[str, float]:
        """See `Objective`: `loss`, and cosines of the new embeddings with the older run's centers."""
        loss = {} if self._loss is None else {"loss": float(self._loss)}
        return loss | {name: value for name, value in self._head.statistics().items() if name.startswith("target_")}

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
