"""The replica that a recipe names."""

from torch import nn

from dist_train.config import RunConfig
from dist_train.replica.base import Replica
from dist_train.replica.ddp import DdpReplica
from dist_train.runtime.ranks import Ranks


def build_replica(config: RunConfig, backbone: nn.Module, accumulation: int, ranks: Ranks) -> Replica:
    """The replica that `train.strategy` names.

    Args:
        config: the whole configuration.
        backbone: on this rank's device, with equal weights on every rank.
        accumulation: micro-batches per step.
        ranks: this process among the job's.

    Raises:
        UserError: options that the strategy does not have.
    """
    if config.train.strategy == "ddp":
        return DdpReplica(config, backbone, ranks)
    from dist_train.replica.zero import ZeroReplica  # DeepSpeed takes seconds to import

    return ZeroReplica(config, backbone, accumulation, ranks)
