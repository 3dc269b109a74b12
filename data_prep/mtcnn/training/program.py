"""The program that trains one network of the cascade."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from data_prep.mtcnn.training.losses import Losses, Targets, Tasks, cascade_losses
from data_prep.mtcnn.training.targets import TargetTable
from data_prep.mtcnn.training.trainee import Trainee
from dist_train.checkpoint.part import CopiedPart, Part
from dist_train.config import RunConfig
from dist_train.data.augment import draw
from dist_train.data.batch import Batch
from dist_train.data.loader import Loader
from dist_train.errors import NonFiniteError
from dist_train.head.exchange import HeadGroup
from dist_train.replica.base import Replica
from dist_train.replica.build import build_replica
from dist_train.train.build import Setting
from dist_train.train.diagnosis import diagnose


class CascadeProgram:
    """A step of one network: crops of four kinds, three losses, each sample counting only for its own.

    The hard samples are those of the whole step, so a step is one forward pass of each rank.

    Args:
        replica: of a `Trainee`, with its optimizer.
        table: what crops should be answered with.
        tasks: what the losses weigh.
        loader: of the crops.
        config: the loop's recipe, which with the loader tells which crops are mirrored.
    """

    def __init__(self, replica: Replica, table: TargetTable, tasks: Tasks, loader: Loader, config: RunConfig) -> None:
        self.replica, self._table, self._tasks = replica, table, tasks
        self._loader, self._seed, self._augment = loader, config.seed, config.data.augment
        ranks = replica.ranks
        self._group, self._device = HeadGroup(ranks.group, ranks.rank, ranks.world_size), ranks.device
        self._losses = torch.zeros(3, device=self._device)
        self.parts: Mapping[str, Part] = {
            "backbone": CopiedPart(replica.backbone_state, replica.load_backbone),
            "optimizer": CopiedPart(replica.optimizer_state, replica.load_optimizer),
        }

    def enter(self, step: int) -> None:
        """See `Program`; nothing changes at a step."""

    def begin(self) -> None:
        """See `Program`."""
        self.replica.train()

    def micro_step(self, batch: Batch, *, last: bool) -> Tensor:
        """See `Program`."""
        if not last:
            raise ValueError("hard samples are those of a whole step; train without micro-batches")
        targets = self.targets_of(batch)
        answers = self.replica.embed(batch.images)
        border = answers.detach().float().requires_grad_()
        losses = cascade_losses(border, targets, self._tasks, self._group)
        losses.total(self._tasks).backward()
        self.replica.backward(answers, cast(Tensor, border.grad))
        self._losses = self._group.all_reduce(torch.stack(losses).detach())
        total = Losses(*self._losses).total(self._tasks)
        if not total.isfinite():
            raise NonFiniteError(f"the loss is {float(total)}; lower the learning rate or look at that step's crops")
        return total

    def targets_of(self, batch: Batch) -> Targets:
        """What the samples of a batch should be answered with, seen in the mirror where the loader showed them so."""
        places = self._loader.locate(batch.positions.numpy())
        drawn = draw(self._augment, self._seed, places.epoch, places.offset, self._loader.image_size)
        mirror = torch.from_numpy(drawn.linear[:, 0, 0] < 0)
        found = self._table.of(batch.host_labels, batch.source, mirror)
        return Targets(*(each.to(self._device) for each in found))

    def update(self, lr: float, *, measure: bool) -> Tensor:
        """See `Program`."""
        return self.replica.step(lr)

    def discard(self) -> None:
        """See `Program`."""
        self.replica.discard()

    def evaluated(self) -> nn.Module:
        """See `Program`."""
        return self.replica.backbone.eval()

    def figures(self) -> dict[str, float]:
        """See `Program`: each task's loss."""
        return {f"loss/{name}": float(loss) for name, loss in zip(Losses._fields, self._losses, strict=True)}

    def diagnose(self, micro_batches: list[Batch]) -> str | None:
        """See `Program`."""

        def loss(answers: Tensor, batch: Batch) -> Tensor:
            return cascade_losses(answers, self.targets_of(batch), self._tasks, self._group).total(self._tasks)

        return diagnose(self.replica, loss, lambda batch: None, micro_batches)

    def close(self) -> None:
        """See `Program`; nothing is open."""


def build_cascade(setting: Setting, network: str, table: TargetTable, tasks: Tasks) -> CascadeProgram:
    """The program that trains `network`. A collective."""
    config, ranks = setting.config, setting.ranks
    torch.manual_seed(config.seed)  # the same weights on every rank
    trainee = Trainee(network).to(ranks.device).to(memory_format=torch.channels_last)
    replica = ranks.agree(lambda: build_replica(config.train, config.optimizer, trainee, setting.accumulation, ranks))
    return CascadeProgram(replica, table, tasks, setting.loader, config)
