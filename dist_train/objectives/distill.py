"""The objective by which a student's embeddings follow a teacher's."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.checkpoint.compatibility import from_digest
from dist_train.checkpoint.part import HostCopy
from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.embed.table import SUFFIXES
from dist_train.errors import NonFiniteError, UserError
from dist_train.head import Head
from dist_train.head.exchange import HeadGroup
from dist_train.objectives.config import DistillConfig
from dist_train.objectives.distill_terms import cosine_distance, relation_distance
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Conditional
from dist_train.objectives.projection import Projection
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.objectives.soft_labels import SoftLabels, check_heads
from dist_train.objectives.still_head import build_still_head, open_other_run
from dist_train.objectives.stored_teacher import open_stored_teacher
from dist_train.objectives.teacher import KEY, Teacher, open_teacher
from dist_train.objectives.weight_schedule import weight_at
from dist_train.runtime.ranks import Ranks
from dist_train.start.place import find_place


def build(section: DistillConfig, setting: ObjectiveSetting) -> "Distill":
    """The objective that a recipe asks for. A collective.

    Raises:
        UserError: a teacher that is not there or does not fit.
        WorkError: a damaged checkpoint.
    """
    config, ranks = setting.config, setting.ranks
    teacher: Teacher
    if section.teacher.suffix in SUFFIXES:
        find_place(KEY, section.teacher, config.run_dir, "embeddings", ranks)
        teacher = open_stored_teacher(KEY, section.teacher, config, setting.loader, ranks)
    else:
        teacher = open_teacher(section.teacher, config, _sizes(config, setting.loader.manifest.image_size), ranks)
    soft_labels = _soft_labels(section, setting) if section.soft_labels else None
    dim = config.backbone.embedding_dim
    return Distill(section, teacher, dim, config.seed, setting.gathering, ranks, soft_labels)


def _sizes(config: RunConfig, stored_px: int) -> dict[str, int]:
    """Sides of the pictures in the phases in which a teacher is asked, by their keys: of all, wherever a run goes on.

    Args:
        config: the whole recipe.
        stored_px: side of the set's pictures, which the recipe may leave as they are.
    """
    return {
        f"phases.{number - 1}.data.image_size" if number else "data.image_size": recipe.data.image_size or stored_px
        for number, (begin, recipe) in enumerate(config.recipes)
        if weight_at(config, "distill", begin)  # 0 there stays 0 to the phase's end
    }


def _soft_labels(section: DistillConfig, setting: ObjectiveSetting) -> SoftLabels:
    other = open_other_run(KEY, section.teacher, setting.config, setting.ranks)
    with setting.ranks.first_speaks():
        check_heads("objectives.distill", setting.config.head, other.head)
    return SoftLabels(cast(Head, setting.head), build_still_head(other, setting), section.temperature)


class Distill(Conditional):
    """A weighted sum of the terms of `distill_terms`, of a teacher's embeddings that have no gradient.

    Every rank computes each term from the gathered embeddings of all, so that a projection has the same gradient on
    all ranks without an exchange. The teacher is not in a checkpoint; a digest of it is, so that a run goes on with
    the one that it began with.

    Args:
        section: of the recipe.
        teacher: gives embeddings.
        student_dim: D.
        seed: of the run; the projection starts from it.
        gathering: of the student's embeddings.
        ranks: this process among the job's.
        soft_labels: the term over classes; None without.
    """

    def __init__(
        self,
        section: DistillConfig,
        teacher: Teacher,
        student_dim: int,
        seed: int,
        gathering: Gathering,
        ranks: Ranks,
        soft_labels: SoftLabels | None = None,
    ) -> None:
        self._section, self._teacher, self._gathering = section, teacher, gathering
        self._soft_labels = soft_labels
        self._group = HeadGroup(ranks.group, ranks.rank, ranks.world_size)
        differ = section.cosine and teacher.embedding_dim != student_dim
        self._projection = Projection(student_dim, teacher.embedding_dim, seed, ranks.device) if differ else None
        self._digest = from_digest(teacher.digest)
        self._taught: tuple[Batch, Tensor] | None = None
        self._values: dict[str, Tensor] = {}

    def prepare(self, batch: Batch) -> None:
        """See `Objective`: the teacher's forward pass, whose memory is free again before the student's begins."""
        self._taught = batch, self._teacher(batch)
        self._gathering.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            student = self._gathering(embeddings, batch).embeddings
            teacher = self._targets(batch)
            known = teacher.any(dim=1)
            terms: dict[str, tuple[float, Tensor]] = {}
            if self._section.cosine:
                seen = student if self._projection is None else self._projection(student)
                terms["cosine"] = self._section.cosine, cosine_distance(seen, teacher, known)
            if self._section.relations:
                terms["relations"] = self._section.relations, relation_distance(student, teacher, known)
            if self._soft_labels is not None:
                terms["soft_labels"] = self._section.soft_labels, self._soft_labels(embeddings, teacher)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        self._values = {"loss": loss.detach()} | {name: value.detach() for name, (_, value) in terms.items()}
        return loss

    def _targets(self, batch: Batch) -> Tensor:
        """The teacher's embeddings of all ranks [G, Dt]."""
        taught, self._taught = self._taught, None
        own = taught[1] if taught is not None and taught[0] is batch else self._teacher(batch)
        every = self._group.gather(own)
        self._gathering.verdict.check(every.isfinite().all(dim=1), self._refusal)
        return every

    def _refusal(self, finite: NDArray[np.bool_]) -> NonFiniteError:
        lost = np.flatnonzero(~finite)
        rank, place = divmod(int(lost[0]), len(finite) // self._group.world_size)
        return NonFiniteError(
            f"rank {rank}: the teacher's embedding {place} of the batch is not finite ({len(lost)} of {len(finite)} "
            f"over all ranks); the step is refused; if it goes on, {KEY} is damaged or needs "
            "train.precision=float32"
        )

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Objective`."""
        if self._projection is not None:
            self._projection.step(lr, proceed)

    def zero_grad(self) -> None:
        """See `Objective`."""
        self._taught = None
        if self._projection is not None:
            self._projection.zero_grad()

    def statistics(self) -> dict[str, float]:
        """See `Objective`: `loss`, and each term without its weight."""
        return {name: float(value) for name, value in self._values.items()} | self._teacher.figures()

    def close(self) -> None:
        """See `Objective`."""
        self._teacher.close()
        if self._soft_labels is not None:
            self._soft_labels.close()

    def state_dict(self) -> dict[str, Any]:
        """See `Part`: the teacher's digest, and the projection."""
        state = {"teacher": self._digest.clone()}
        return state if self._projection is None else state | self._projection.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`.

        Raises:
            UserError: of another teacher.
        """
        if not torch.equal(state["teacher"].cpu(), self._digest):
            raise UserError(
                f"{KEY} {self._section.teacher}: is another teacher than the one that this run began with; bring that "
                "one back (a run directory stands for its newest checkpoint: name the checkpoint itself), or start a "
                "new run"
            )
        if self._projection is not None:
            self._projection.load_state_dict(state)

    def snapshot(self) -> HostCopy:
        """See `Part`."""
        return HostCopy(self.state_dict())
