"""The ranks of a job: who this process is, and how ranks agree."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist

from dist_train.errors import UserError, WorkError
from dist_train.runtime.heap import keep_heap
from dist_train.runtime.membership import RANK_NAMES, Membership, read_membership
from dist_train.runtime.text import first_line

T = TypeVar("T")

TIMEOUT_S = 600.0
TIMEOUT_MARGIN_S = 30.0
"""A rank's watchdog, which tells where all ranks stand, must come before the exchange that gives up."""
LONG_WAIT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank: 0 .. world_size - 1 over all machines.
        local_rank: this process among those of its machine.
        world_size: processes of the job.
        device: where this process computes.
        group: the collectives' group; None when the process is alone.
        control_group: a group over gloo for flags and messages, which never makes the host wait for a GPU.
        saving_group: another one, so that a checkpoint can be written while training communicates.
        timeout_s: longest wait for another rank.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    control_group: dist.ProcessGroup | None = None
    saving_group: dist.ProcessGroup | None = None
    timeout_s: float = TIMEOUT_S

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it holds on some rank; one collective when there are several ranks."""
        if self.control_group is None:
            return list(flags)
        value = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control_group)
        return [bool(one) for one in value.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control_group is not None:
            dist.barrier(self.control_group)

    def long_wait(self) -> Callable[[], None]:
        """A barrier for the end of work that may take hours on one rank; opening it is a collective, as it is itself.

        It is told at once of a rank that ends, and gives up after `LONG_WAIT`.
        """
        if self.control_group is None:
            return lambda: None
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=LONG_WAIT))

        def wait() -> None:
            dist.barrier(group)

        return wait

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of ranks, on every rank; a collective."""
        if self.control_group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control_group)
        return cast(list[T], values)

    def agree(self, action: Callable[[], T], raise_on: Literal["first", "all"] = "first") -> T:
        """Do `action` on every rank; if it fails on some, fail on all, so that none waits for the others. A collective.

        Args:
            action: must not itself wait for other ranks before the point where it may fail.
            raise_on: the ranks that raise the failure: the first, or all where the callers may go on after it.

        Raises:
            UserError | WorkError: on the first rank alone, with the distinct messages of all ranks and who found them;
                on all ranks, as the first that failed has it.
            SystemExit: silently, on the others where the first rank alone raises the failure.
        """
        result: T | None = None
        mistake: UserError | WorkError | None = None
        try:
            result = action()
        except (UserError, WorkError) as error:
            mistake = error
        failures = self.gather(mistake)
        found = next((failure for failure in failures if failure is not None), None)
        if found is None:
            return cast(T, result)
        if raise_on == "all":
            raise found
        with self.first_speaks():
            raise _joined(failures)

    @contextmanager
    def first_speaks(self) -> Iterator[None]:
        """Around work whose failures are the same on all ranks: the first raises them, the others end silently.

        Raises:
            UserError | WorkError: on rank 0, as the work raised it.
            SystemExit: on the other ranks.
        """
        try:
            yield
        except (UserError, WorkError) as error:
            if self.rank == 0:
                raise
            raise SystemExit(2 if isinstance(error, UserError) else 1) from error


def _joined(failures: Sequence[UserError | WorkError | None]) -> UserError | WorkError:
    """One failure out of those of the ranks [W], None for a rank that had none."""
    if len(failures) == 1 and failures[0] is not None:
        return failures[0]
    kind = WorkError if any(isinstance(failure, WorkError) for failure in failures) else UserError
    who: dict[str, list[int]] = {}
    for rank, failure in enumerate(failures):
        if failure is not None:
            who.setdefault(str(failure), []).append(rank)
    if len(who) == 1 and all(failures):
        return kind(next(iter(who)))
    return kind("\n".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in who.items()))


ALONE = Ranks(0, 0, 1, torch.device("cpu"))
"""A process that no other shares its work with."""


def join_ranks(device: str, threads: int | None, timeout_s: float = TIMEOUT_S) -> Ranks:
    """Join the job that the environment describes (torchrun's variables), or stand alone without them.

    Args:
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of this rank; default: the cores shared evenly by the machine's ranks.
        timeout_s: longest wait for another rank.

    Raises:
        UserError: `cuda` without a GPU for this rank, or an environment that describes no job.
        WorkError: the other ranks did not come.
    """
    import cv2  # a head alone needs ranks, and no pictures

    here = read_membership(os.environ)
    rank, world_size, local_rank, local_world = here
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus < local_world:
        raise UserError(
            f"device=cuda: {gpus} GPUs for {local_world} ranks on this machine; start fewer ranks or use cpu"
        )
    use_cuda = device == "cuda" or (device == "auto" and gpus >= local_world)
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    else:
        keep_heap()
    count = threads or max(1, len(os.sched_getaffinity(0)) // local_world)
    torch.set_num_threads(count)
    cv2.setNumThreads(count)  # decodes in this process where there are no data workers, and in evaluation
    if world_size == 1:
        return Ranks(rank, local_rank, world_size, where)
    timeout = timedelta(seconds=timeout_s + TIMEOUT_MARGIN_S)
    with _absence_said(here):
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timeout)
        # Every rank is in both, so new_group gives the group itself and not the marker of an outsider.
        control, saving = (cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout)) for _ in range(2))
    return Ranks(rank, local_rank, world_size, where, dist.group.WORLD, control, saving, timeout_s)


@contextmanager
def _absence_said(here: Membership) -> Iterator[None]:
    """Say who did not come to the meeting of the ranks."""
    try:
        yield
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise WorkError(
            f"rank {here.rank} of {here.world_size}: the ranks did not all meet at {where} "
            f"({first_line(error)}); start every rank, on machines that reach this address, or unset "
            f"{' '.join(RANK_NAMES)} to be alone"
        ) from error


def leave_ranks(ranks: Ranks) -> None:
    """Close the groups that `join_ranks` opened."""
    if ranks.group is not None:
        dist.destroy_process_group()
