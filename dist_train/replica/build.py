"""The replica that a recipe names."""

from torch import nn

from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.replica.base import Replica
from dist_train.replica.ddp import DdpReplica
from dist_train.runtime.ranks import Ranks


def build_replica(
    train: TrainConfig, optimizer: OptimizerConfig, backbone: nn.Module, accumulation: int, ranks: Ranks
) -> Replica:
    """The replica that `train.strategy` names.

    Args:
        train: the recipe's section `train`.
        optimizer: the recipe's section `optimizer`.
        backbone: on this rank's device, with equal weights on every rank.
        accumulation: micro-batches per step.
        ranks: this process among the job's.

    Raises:
        UserError: options that the strategy does not have.
    """
    if train.strategy == "ddp":
        return DdpReplica(train, optimizer, backbone, ranks)
    from dist_train.replica.zero import ZeroReplica  # DeepSpeed takes seconds to import

    return ZeroReplica(train, optimizer, backbone, accumulation, ranks)
