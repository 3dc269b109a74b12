"""The ranks that share the classes: who owns which, and the exchanges between them."""

import torch.distributed as dist
from torch import Tensor


def class_range(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one-past-last class of `rank`: ceil(C/W) classes each, the last ranks fewer or none.

    This is the convention of `torch.chunk` and so of `DTensor`'s `Shard(0)`.
    """
    share = -(-num_classes // world_size)
    return min(rank * share, num_classes), min((rank + 1) * share, num_classes)


class Ranks:
    """A process group seen from one of its ranks; with one rank and no group every exchange is the identity."""

    def __init__(self, group: dist.ProcessGroup | None, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.group = dist.group.WORLD if group is None and world_size > 1 else group

    def gather(self, local: Tensor) -> Tensor:
        """All-gather: [B, ...] of every rank -> [W·B, ...] in order of ranks. One collective."""
        if self.world_size == 1:
            return local
        out = local.new_empty((self.world_size * local.shape[0], *local.shape[1:]))
        dist.all_gather_single(out, local.contiguous(), group=self.group)
        return out

    def reduce_scatter(self, partial: Tensor) -> Tensor:
        """Sum over ranks, of which this rank takes its part: [W·B, ...] -> [B, ...]. One collective."""
        if self.world_size == 1:
            return partial
        out = partial.new_empty((partial.shape[0] // self.world_size, *partial.shape[1:]))
        dist.reduce_scatter_single(out, partial.contiguous(), group=self.group)
        return out

    def gather_messages(self, value: str | None) -> list[str | None]:
        """A message of every rank, in order of ranks. One collective, for the start of a run only."""
        if self.world_size == 1:
            return [value]
        values: list[str | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place. One collective."""
        if self.world_size > 1:
            dist.all_reduce(value, group=self.group)
        return value


def first_failure(failures: list[str | None]) -> str | None:
    """The message of the lowest rank that failed, with its rank; None where none did."""
    for rank, failure in enumerate(failures):
        if failure is not None:
            return f"rank {rank}: {failure}"
    return None
