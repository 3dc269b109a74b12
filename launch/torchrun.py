"""The command `headcount launch torchrun`: ranks under an agent of torchrun on each machine.

The agent runs in this process, with torch's own reading of torchrun's arguments, so the command that is printed does
the same when typed by hand. What is gained is a clear end: the ranks' own message, and their exit status.
"""

import logging
import os
import re
import shlex
import sys
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.errors import UserError
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.processes import SAFE_PATH
from dist_train.runtime.terminal import echo
from launch.agent import STOP_TIMEOUT_S, run_agent
from launch.options import AllowChanges, Resume, going_on

if TYPE_CHECKING:
    from dist_train.config import RunConfig

DEFAULT_PORT = 29400  # torchrun's own
STOP_TIMEOUT = "--shutdown-timeout"

# Ranks would meet in one store for the life of the agents, where those started again find addresses of the ones before
# them and wait for the dead (pytorch/pytorch issue 135712). With this the store of each start is a new one.
SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **SAFE_PATH}


@dataclass(frozen=True, slots=True)
class TorchrunJob:
    """The settings of the agents of a job, equal on all its machines.

    Attributes:
        min_nodes: machines without which the job waits.
        max_nodes: most machines; with more than `min_nodes` it goes on with fewer and takes in more.
        procs_per_node: ranks of each machine.
        rdzv_endpoint: `HOST:PORT` where the machines meet; HOST is one of them.
        rdzv_id: name of the job at that meeting point.
        max_restarts: how often the ranks are started again after one of them failed.
    """

    min_nodes: int
    max_nodes: int
    procs_per_node: int
    rdzv_endpoint: str
    rdzv_id: str
    max_restarts: int

    @classmethod
    def on_this_machine(cls, ranks: int, max_restarts: int = 0) -> "TorchrunJob":
        """The settings of ranks that meet on a free port, apart from the ranks of every other job."""
        return cls(1, 1, ranks, "localhost:0", uuid.uuid4().hex, max_restarts)

    def arguments(self, command: Sequence[str]) -> list[str]:
        """Arguments for torchrun to run `python -m COMMAND` as ranks."""
        nodes = f"{self.min_nodes}:{self.max_nodes}" if self.max_nodes > self.min_nodes else str(self.min_nodes)
        return [
            f"--nnodes={nodes}",
            f"--nproc-per-node={self.procs_per_node}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.rdzv_endpoint}",
            f"--rdzv-id={self.rdzv_id}",
            f"--max-restarts={self.max_restarts}",
            f"{STOP_TIMEOUT}={STOP_TIMEOUT_S}",
            *(["--local-addr=localhost"] if self.max_nodes == 1 else []),
            "-m",
            *command,
        ]


def node_range(text: str) -> tuple[int, int]:
    """`N` or `MIN:MAX` machines.

    Raises:
        UserError: neither of them, or none, or MAX below MIN.
    """
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    low = int(found[1]) if found else 0
    high = int(found[2] or low) if found else 0
    if not 1 <= low <= high:
        raise UserError(f"--nodes {text}: expected N or MIN:MAX with 1 <= MIN <= MAX, e.g. 4 or 2:4")
    return low, high


def check_ranks(config: "RunConfig", nodes: tuple[int, int], procs_per_node: int) -> None:
    """Refuse a job in which some possible number of ranks does not divide the batches.

    Raises:
        UserError: one does not.
    """
    from dist_train.train.batching import micro_batches

    low, high = nodes
    for count in range(low, high + 1):
        try:
            micro_batches(config, count * procs_per_node)
        except UserError as error:
            where = f"with {count} of {low}:{high} machines: " if high > low else ""
            raise UserError(f"{where}{error}") from error


def meeting_point(text: str | None) -> str:
    """`HOST:PORT` of the rendezvous of several machines.

    Args:
        text: what the user gave, `HOST` or `HOST:PORT`.

    Raises:
        UserError: missing, or not of that form.
    """
    if text is None:
        raise UserError("--rdzv is missing: name one of the machines, on all of them the same, e.g. --rdzv node0")
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise UserError(f"--rdzv {text}: expected HOST or HOST:PORT, e.g. node0:{DEFAULT_PORT}")
    return f"{host}:{port}"


def torchrun(
    config: Annotated[Path, typer.Argument(help="recipe to train by, e.g. configs/quickstart.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe with other values: section.key=value ...")
    ] = None,
    nodes: Annotated[
        str, typer.Option(help="number of machines: N, or MIN:MAX to start with MIN and take in up to MAX")
    ] = "1",
    procs_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks of each machine; by default one for each GPU, or 2 without GPUs")
    ] = None,
    rdzv: Annotated[
        str | None, typer.Option(help="HOST[:PORT] at which the machines meet; HOST is one of the machines")
    ] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="how many times all ranks start again after one failed")] = 3,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the command of torchrun and end")] = False,
) -> None:
    """Train on one or several machines under torchrun; give the same command on each of them.

    When a rank dies, all ranks start again from the newest checkpoint. With MIN:MAX machines the job continues on the
    machines that are left; batch size, sample order and losses stay those of the recipe. `run_dir` and the data must
    be on every machine.

    Examples:

      headcount launch torchrun configs/quickstart.yaml --procs-per-node 2

      headcount launch torchrun configs/quickstart.yaml --procs-per-node 1 --nodes 1:2 --rdzv node0:29400
    """
    with quick_imports():
        import torch

        from dist_train.config import load_config

    settings = load_config(config, overrides or [])
    run_dir = settings.run_dir
    low, high = node_range(nodes)
    procs = procs_per_node or torch.cuda.device_count() or 2
    check_ranks(settings, (low, high), procs)
    if high > 1:
        # Machines that meet must call the job the same.
        name = f"{run_dir.name}-{zlib.crc32(str(run_dir).encode()):08x}"
        job = TorchrunJob(low, high, procs, meeting_point(rdzv), name, max_restarts)
    else:  # one machine needs no meeting point, though a script for N machines may name one
        job = TorchrunJob.on_this_machine(procs, max_restarts)
    command = ["launch.rank", str(run_dir), "train", str(config), *(overrides or [])]
    command += going_on(resume, allow_changes)
    start(job.arguments(command), dry_run)


def start(arguments: list[str], dry_run: bool) -> None:
    """Print the command `torchrun ARGUMENTS` with `SETTINGS`, and run it unless `dry_run`.

    Raises:
        typer.Exit: with the exit status of the job.
    """
    with quick_imports():
        from torch.distributed.run import config_from_args, get_args_parser, parse_args

    if STOP_TIMEOUT not in get_args_parser().format_usage():  # older torch, which `run_agent` tells otherwise
        arguments = [argument for argument in arguments if not argument.startswith(f"{STOP_TIMEOUT}=")]
    names = [f"{name}={value}" for name, value in SETTINGS.items()]
    echo(shlex.join([*names, sys.executable, "-m", "torch.distributed.run", *arguments]), err=not dry_run)
    if dry_run:
        return
    os.environ.update(SETTINGS)
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    settings, _, command = config_from_args(parse_args(arguments))
    raise typer.Exit(run_agent(settings, command))
