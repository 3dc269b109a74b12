"""The replicas of a run's backbone: one at a time, another when a step changes what is trained."""

import logging

from torch import nn

from dist_train.backbones import build_backbone, memory_format, recompute_activations
from dist_train.checkpoint.part import HostCopy
from dist_train.config import RunConfig
from dist_train.replica.base import Replica
from dist_train.replica.build import build_replica
from dist_train.runtime.ranks import Ranks
from dist_train.start.freeze import Freezing

logger = logging.getLogger(__name__)


class Replicas:
    """Makes the replica of a step, in which stands still what the recipe says.

    Args:
        config: the whole recipe.
        image_size: side of the pictures in pixels.
        accumulation: micro-batches per step.
        ranks: this process among the job's.

    Attributes:
        freezing: what stands still at a step.
    """

    def __init__(self, config: RunConfig, image_size: int, accumulation: int, ranks: Ranks) -> None:
        self._config, self._image_size, self._accumulation, self._ranks = config, image_size, accumulation, ranks
        self.freezing = Freezing.of([(step, each.start) for step, each in config.recipes])

    def empty(self) -> nn.Module:
        """A backbone with random weights, where torch makes tensors by default."""
        return build_backbone(self._config.backbone, self._image_size)

    def backbone(self) -> nn.Module:
        """A backbone with random weights on this rank's device, ready to be replicated."""
        backbone = self.empty()
        if self._config.train.activation_checkpointing:
            recompute_activations(backbone)
        return backbone.to(self._ranks.device).to(memory_format=memory_format(backbone))

    def replicate(self, backbone: nn.Module, step: int) -> Replica:
        """The replica that trains `backbone` from step `step` on. A collective.

        Raises:
            UserError: parts or options that the network or the strategy does not have.
        """
        standing = self.freezing.hold(backbone, step)
        self._say(backbone, step)
        train, optimizer = self._config.train, self._config.optimizer
        return build_replica(train, optimizer, backbone, self._accumulation, self._ranks, standing)

    def follow(self, before: Replica, step: int) -> Replica:
        """The replica that goes on from another one, which is closed, at step `step`. A collective."""
        # Of a network that is built anew: strategies leave hooks in the one that they replicate.
        weights, optimizer = HostCopy(before.backbone_state()), HostCopy(before.optimizer_state())
        before.close()
        after = self.replicate(self.backbone(), step)
        after.load_backbone(weights.state)
        after.load_optimizer(optimizer.state)
        return after

    def _say(self, backbone: nn.Module, step: int) -> None:
        """Tell on rank 0 what stands still, where a recipe asks for it."""
        if not self.freezing.ever or self._ranks.rank != 0:
            return
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in backbone.parameters()]
        trained, every = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
        still = self.freezing.at(step)
        end = self.freezing.until(step)
        if end is None:
            until = "the rest of the run" if self.freezing.later else "all steps"
        else:
            until = f"the first {end:,} steps" if end == self.freezing.steps else f"the steps before {end:,}"
        what = f"{', '.join(still)} stand still for {until}" if still else "all parts train from now on"
        logger.info("start.freeze: %s; %s of the backbone's %s parameters train", what, f"{trained:,}", f"{every:,}")
