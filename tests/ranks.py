"""Start real ranks over gloo and bring their results, or the failing rank's traceback, back to the test.

The processes are forked from one server per test process. It has imported what nearly every rank needs, which takes
seconds of a core; a rank that finds it there begins in hundredths. The server runs no code of a test, is in no group,
and ends with the test process.
"""

import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dist_train.runtime.processes import ONE_THREAD, spawning
from dist_train.runtime.ranks import Ranks

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def torchrun_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank of one machine."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


class _Outputs:
    """Files that become the standard output and error of a process that gets this."""

    def __init__(self, out: int, err: int) -> None:
        self._files = out, err

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return _take, tuple(DupFd(file) for file in self._files)


def _take(*files: Any) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(file.detach(), number)


def _begin(outputs: None, environment: dict[str, str], target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()  # the server's, of the time when it was started
    os.environ.update(environment)
    target(*args)


def forked(
    target: Callable[..., Any],
    *args: Any,
    variables: dict[str, str],
    outputs: tuple[int, int] = (1, 2),
    bare: bool = False,
) -> BaseProcess:
    """A process that has begun `target(*args)` in the environment of this one and `variables`, with one thread.

    It writes where this one does now, or to other `outputs`. `target` must be importable. A `bare` one has imported
    nothing before, for variables that a library reads when it is loaded.
    """
    context: SpawnContext | ForkServerContext
    if bare:
        context = mp.get_context("spawn")
    else:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
    ours = ONE_THREAD | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with spawning(ours | variables if bare else ours):
        begin = (_Outputs(*outputs), os.environ | variables, target, args)
        process = context.Process(target=_begin, args=begin)
        process.start()
    return process


def _enter(rank: int, world_size: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
        results.put((rank, None, function(rank, world_size, *args)))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise


def ranks_here(rank: int, world_size: int) -> Ranks:
    """This process among those that `run_ranks` started, or alone."""
    group = dist.group.WORLD if world_size > 1 else None
    return Ranks(rank, rank, world_size, torch.device("cpu"), group, group, group)


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_s: float = 180,
    variables: dict[str, str] | None = None,
) -> list[Any]:
    """Run `function(rank, world_size, *args)` in `world_size` processes; its results, by rank.

    With `variables` in their environment they load every library themselves.

    `function` must be importable (top level of a test module); results must pickle: give numpy arrays, not
    tensors, so that nothing depends on a dead process's shared memory.
    """
    results = mp.get_context("forkserver").Queue()
    port = free_port()
    processes = []
    for rank in range(world_size):
        own, bare = torchrun_variables(rank, world_size, port) | (variables or {}), variables is not None
        processes.append(forked(_enter, rank, world_size, results, function, args, variables=own, bare=bare))
    values: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    try:
        while len(values) < world_size:
            try:
                rank, failure, value = results.get(timeout=1)
            except queue.Empty:
                dead = [i for i, p in enumerate(processes) if i not in values and p.exitcode not in (None, 0)]
                if dead or time.monotonic() > deadline:
                    what = f"ranks {dead} died" if dead else f"no result after {timeout_s} s"
                    raise AssertionError(f"{what}; finished: {sorted(values)}") from None
                continue
            if failure:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{failure}")
            values[rank] = value
    finally:
        for process in processes:
            process.join(timeout=10 if len(values) == world_size else 0.1)
            if process.is_alive():
                process.kill()
    return [values[rank] for rank in range(world_size)]
