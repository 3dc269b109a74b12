"""All ranks on this machine: `headcount launch local`."""

import uuid
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError
from launch.agent import run_agent


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

    settings = load_config(config, overrides or [])  # a mistake is said once, before any process starts
    gpus = torch.cuda.device_count()
    count = ranks or gpus or 2
    if settings.train.device == "cuda" and gpus < count:
        raise UserError(f"train.device=cuda: {gpus} GPUs for {count} ranks on this machine; give --ranks or use cpu")
    command = ["-m", "launch", "train", str(config), *(overrides or []), *(["--resume"] if resume else [])]
    raise typer.Exit(run_ranks(command, count))


def run_ranks(command: list[str], ranks: int) -> int:
    """Run `python COMMAND` as `ranks` processes, on a free port that the agent picks; the exit status of the job."""
    from torch.distributed.launcher.api import LaunchConfig

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
    return run_agent(settings, command)
