"""The command `headcount launch local`: all ranks on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError
from dist_train.runtime.imports import quick_imports
from launch.options import AllowChanges, Resume, going_on


def local(
    config: Annotated[Path, typer.Argument(help="recipe to train by, e.g. configs/quickstart.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe with other values: section.key=value ...")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="number of ranks; by default one for each GPU, or 2 without GPUs")
    ] = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the command of torchrun and end")] = False,
) -> None:
    """Train on this machine with one process a GPU, or a few on the CPU.

    The ranks meet on a free port. When one of them dies the job ends; `headcount launch torchrun` starts them again.

    Examples:

      headcount launch local configs/quickstart.yaml

      headcount launch local configs/quickstart.yaml --ranks 4 optimizer.lr=0.05
    """
    with quick_imports():
        import torch

        from dist_train.config import load_config
        from launch.torchrun import TorchrunJob, check_ranks, start

    settings = load_config(config, overrides or [])  # a mistake is said once, before any process starts
    gpus = torch.cuda.device_count()
    count = ranks or gpus or 2
    if settings.train.device == "cuda" and gpus < count:
        raise UserError(f"train.device=cuda: {gpus} GPUs for {count} ranks on this machine; give --ranks or use cpu")
    check_ranks(settings, (1, 1), count)
    job = TorchrunJob.on_this_machine(count)
    command = ["launch", "train", str(config), *(overrides or []), *going_on(resume, allow_changes)]
    start(job.arguments(command), dry_run)
