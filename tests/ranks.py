"""Start real ranks over gloo and bring their results, or the failing rank's traceback, back to the test."""

import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dist_train.runtime.processes import ONE_THREAD, spawning
from dist_train.runtime.ranks import Ranks


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _enter(rank: int, world_size: int, port: int, results: Any, function: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
    )
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


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 180) -> list[Any]:
    """Run `function(rank, world_size, *args)` in `world_size` processes; its results, by rank.

    `function` must be importable (top level of a test module); results must pickle: give numpy arrays, not
    tensors, so that nothing depends on a dead process's shared memory.
    """
    context = mp.get_context("spawn")
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_enter, args=(rank, world_size, port, results, function, args), daemon=False)
        for rank in range(world_size)
    ]
    with spawning(ONE_THREAD):
        for process in processes:
            process.start()
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
