"""`headcount train`."""

import logging
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="recipe, e.g. configs/quickstart.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in run_dir")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="resume although the configuration differs from the stored one")
    ] = False,
) -> None:
    """Train an embedding model; evaluate, export and report at the end.

    One process here; under torchrun or Slurm one rank of many: `headcount launch` starts those.

    Examples:

      headcount train configs/quickstart.yaml

      headcount train configs/quickstart.yaml head.sample_rate=0.2 run_dir=runs/sampled

      headcount train configs/quickstart.yaml --resume
    """
    from dist_train.config import load_config
    from dist_train.errors import WorkError
    from dist_train.run import lost_peer, run

    try:
        status = run(load_config(config, overrides or []), resume, allow_changes)
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        raise WorkError("another rank of the job went away; its own message says why") from error
    logging.shutdown()
    raise typer.Exit(status)
