"""The command `headcount train`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from dist_train.runtime.imports import quick_imports
from launch.options import AllowChanges, Resume


def train(
    config: Annotated[Path, typer.Argument(help="recipe to train by, e.g. configs/quickstart.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe with other values: section.key=value ...")
    ] = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="train nothing: validate the recipe, plan memory and make one small step"),
    ] = False,
) -> None:
    """Train an embedding model; evaluate, export and report at the end.

    The command is one process, and one rank of many under torchrun or Slurm: `headcount launch` starts many ranks.

    Examples:

      headcount train configs/quickstart.yaml

      headcount train configs/quickstart.yaml head.sample_rate=0.2 run_dir=runs/sampled

      headcount train configs/quickstart.yaml --resume

      headcount train configs/glint360k_r100.yaml --check
    """
    with quick_imports():
        from dist_train.config import load_config
        from dist_train.errors import UserError, WorkError
        from dist_train.train.run import lost_peer, run

    settings = load_config(config, overrides or [])
    if check:
        if resume or allow_changes:
            raise UserError("--check starts no run; leave out --resume and --allow-changes")
        from launch.check import check as check_recipe

        check_recipe(settings)
        return
    try:
        status = run(settings, resume, allow_changes)
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        raise WorkError(
            "another rank of the job went away, or did not answer within train.timeout_s; its own message says why"
        ) from error
    logging.shutdown()
    raise typer.Exit(status)
