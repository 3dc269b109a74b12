"""The replica that a recipe names."""

from torch import nn

from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.replica.base import NOTHING, Replica, Standing
from dist_train.replica.ddp import DdpReplica
from dist_train.replica.groups import rate_shares
from dist_train.replica.still import StillReplica
from dist_train.runtime.ranks import Ranks


def build_replica(
    train: TrainConfig,
    optimizer: OptimizerConfig,
    backbone: nn.Module,
    accumulation: int,
    ranks: Ranks,
    standing: Standing = NOTHING,
) -> Replica:
    """The replica that `train.strategy` names; a plain backbone where none of its parameters is to be trained.

    Args:
        train: the recipe's section `train`.
        optimizer: the recipe's section `optimizer`.
        backbone: on this rank's device, with equal weights on every rank; what stands still requires no gradient.
        accumulation: micro-batches per step.
        ranks: this process among the job's.
        standing: what stands still.

    Raises:
        UserError: options that the strategy or the network does not have; also those that count once it trains.
    """
    rate_shares(optimizer, backbone)
    still = not any(parameter.requires_grad for parameter in backbone.parameters())
    if train.strategy == "ddp":
        if still:
            return StillReplica(train, optimizer, backbone, ranks, standing)
        return DdpReplica(train, optimizer, backbone, ranks, standing)
    from dist_train.replica.zero import ZeroReplica, open_deepspeed  # DeepSpeed takes seconds to import

    if still:
        open_deepspeed(train, ranks)
        return StillReplica(train, optimizer, backbone, ranks, standing)
    return ZeroReplica(train, optimizer, backbone, accumulation, ranks, standing)
