"""All ranks on this machine: `headcount launch local`."""

import logging
import os
import sys
import uuid
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Start a job of several ranks.", no_args_is_help=True)


@app.callback()
def launch() -> None:
    """Start a job of several ranks."""


@app.command()
def local(
    config: Annotated[Path, typer.Argument(help="recipe, e.g. configs/quickstart.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="processes; default: one a GPU, or 2 without GPUs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in run_dir")] = False,
) -> None:
    """Train on this machine with one process a GPU, or a few on the CPU.

    Examples:

      headcount launch local configs/quickstart.yaml

      headcount launch local configs/quickstart.yaml --ranks 3 optimizer.lr=0.05
    """
    import torch

    from dist_train.config import load_config

    load_config(config, overrides or [])  # a mistake is said once, before any process starts
    count = ranks or torch.cuda.device_count() or 2
    command = ["-m", "launch", "train", str(config), *(overrides or []), *(["--resume"] if resume else [])]
    raise typer.Exit(run_ranks(command, count))


def run_ranks(command: list[str], ranks: int) -> int:
    """Run `python COMMAND` as `ranks` processes under torchrun's agent; the exit status of the job.

    The agent picks a free port. The first failing rank's status is the job's; what went wrong is in that rank's output.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The ranks' own messages say what happened; the agent's would bury them.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)(*command)
    except ChildFailedError as error:
        # Ranks that lost a peer, or were ended for it, follow the one that failed; a user's mistake is status 2.
        statuses = [failure.exitcode for failure in error.failures.values()]
        return 2 if 2 in statuses else next((status for status in statuses if status > 0), 1)
    except SignalException:
        return 130
    return 0
