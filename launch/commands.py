"""The commands of `headcount launch`."""

import typer

from launch.local import local
from launch.plan import plan
from launch.slurm import slurm
from launch.status import status
from launch.torchrun import torchrun

app = typer.Typer(help="Start training on many ranks, watch it, plan it.", no_args_is_help=True)


@app.callback()
def launch() -> None:
    """Start training on many ranks, watch it, plan it."""


app.command()(local)
app.command()(torchrun)
app.command()(slurm)
app.command()(status)
app.command()(plan)
