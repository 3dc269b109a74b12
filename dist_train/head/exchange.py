"""The exchanges between the ranks that share the classes."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from dist_train.runtime.torch_names import ALL_GATHER, REDUCE_SCATTER


class HeadGroup:
    """The group of ranks that share the classes, seen from one of them; alone, every exchange is the identity.

    Args:
        group: the ranks; None: the default group, or none where `world_size` is 1.
        rank: this rank in `group`.
        world_size: ranks of the group, W.
    """

    def __init__(self, group: dist.ProcessGroup | None, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.group = dist.group.WORLD if group is None and world_size > 1 else group

    def gather(self, local: Tensor) -> Tensor:
        """All-gather: [B, ...] of every rank -> [W·B, ...] in order of ranks. One collective."""
        if self.world_size == 1:
            return local
        out = local.new_empty((self.world_size * local.shape[0], *local.shape[1:]))
        getattr(dist, ALL_GATHER)(out, local.contiguous(), group=self.group)
        return out

    def reduce_scatter(self, partial: Tensor) -> Tensor:
        """The sum over ranks, cut in W parts, this rank's part: [W·B, ...] -> [B, ...]. One collective."""
        if self.world_size == 1:
            return partial
        out = partial.new_empty((partial.shape[0] // self.world_size, *partial.shape[1:]))
        getattr(dist, REDUCE_SCATTER)(out, partial.contiguous(), group=self.group)
        return out

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place. One collective."""
        if self.world_size > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """Largest over ranks, in place. One collective."""
        if self.world_size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return value


def sharded_rows(rows: Tensor, num_classes: int, ranks: HeadGroup) -> Tensor:
    """A rank's rows [n, width] as a view of the table [num_classes, width] of all ranks; alone, the rows themselves."""
    if ranks.group is None or ranks.world_size == 1:
        return rows
    shape = torch.Size((num_classes, rows.shape[1]))
    mesh = DeviceMesh.from_group(ranks.group, rows.device.type)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1))
