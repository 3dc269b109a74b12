"""`headcount launch`."""

import typer

from launch.local import local
from launch.slurm import slurm
from launch.torchrun import torchrun

app = typer.Typer(help="Start a job of several ranks.", no_args_is_help=True)


@app.callback()
def launch() -> None:
    """Start a job of several ranks."""


app.command()(local)
app.command()(torchrun)
app.command()(slurm)
