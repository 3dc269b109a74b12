"""One rank of many that are not there: torch's `fake` process group, and a record of what its collectives carry."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_train.head.exchange import HeadGroup
from dist_train.runtime.ranks import Ranks


class Collective(NamedTuple):
    """A collective as a rank starts it.

    Attributes:
        kind: such as `allreduce_`.
        numbers: of the largest of its tensors, which all ranks have alike.
        dtype: of its numbers.
        received: bytes that come to a rank, in rings.
    """

    kind: str
    numbers: int
    dtype: torch.dtype
    received: int


class Record(TorchDispatchMode):
    """While entered, notes the collectives of a rank among `world_size` in order.

    Attributes:
        seen: those so far.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._world_size = world_size
        self.seen: list[Collective] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Note an operation that is a collective."""
        done = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            # What others would have sent: the fake group gathers this rank's own part in their place, which under
            # stage 3 is whatever memory held where a weight has fewer numbers than there are ranks.
            if func.__name__.startswith("_reduce_scatter_base_"):
                args[0].zero_()
            if func.__name__.startswith("_allgather_base_") and args[0].is_floating_point():
                args[0].fill_(0.01)
            tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
            self.seen.append(self._noted(func._schema.name.removeprefix("c10d::"), tensors))
        return done

    def _noted(self, kind: str, tensors: list[Tensor]) -> Collective:
        largest = max(tensors, key=Tensor.numel, default=torch.empty(0))
        whole, others = largest.nbytes, self._world_size - 1
        rings = 2 if kind == "allreduce_" else 1  # as a reduce-scatter, and an all-gather
        received = rings * whole * others // self._world_size
        return Collective(kind, largest.numel(), largest.dtype, received)


@contextmanager
def rank_of(rank: int, world_size: int, device: torch.device) -> Iterator[tuple[Ranks, Record]]:
    """This process as a rank of a job. Other ranks say what this one says, but for rank 0's ones in the head."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        control = dist.new_group(backend="fake")
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
        with (
            mock.patch.dict(os.environ, place),
            mock.patch.object(Ranks, "gather", lambda ranks, value: [value] * ranks.world_size),
            mock.patch.object(HeadGroup, "gather", _with_ones),
            mock.patch.object(HeadGroup, "all_reduce", lambda *given: _ALL_REDUCE(*given).add_(1)),
            mock.patch.object(HeadGroup, "all_reduce_max", lambda *given: _ALL_REDUCE_MAX(*given).clamp_min_(1)),
            mock.patch.object(DistributedDataParallel, "__init__", _with_plain_exchange),
            Record(world_size) as record,
        ):
            yield Ranks(rank, 0, world_size, device, dist.group.WORLD, control, control), record
    finally:
        _forget_groups()
        dist.destroy_process_group()


_GATHER, _ALL_REDUCE, _ALL_REDUCE_MAX = HeadGroup.gather, HeadGroup.all_reduce, HeadGroup.all_reduce_max
_INIT = DistributedDataParallel.__init__


def _with_ones(group: HeadGroup, local: Tensor) -> Tensor:
    """A rank without classes has no finite sum, and were all ranks like it, there would be none."""
    gathered = _GATHER(group, local)
    if gathered.is_floating_point():
        gathered[: len(local)] = 1
    return gathered


def _with_plain_exchange(replicated: DistributedDataParallel, *args: object, **options: object) -> None:
    """The exchange that is made without a hook, whose result the fake group does not hand over."""
    _INIT(replicated, *args, **options)
    replicated.register_comm_hook(replicated.process_group, _exchange)


def _exchange(group, bucket):
    dist.all_reduce(bucket.buffer(), group=group)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _forget_groups() -> None:
    """DeepSpeed keeps groups of the job that it was first started in."""
    if "deepspeed" in sys.modules:
        from deepspeed import comm
        from deepspeed.utils import groups

        comm.comm.cdb = None
        for name in ("_WORLD_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP"):
            setattr(groups, name, None)
