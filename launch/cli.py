"""The command `headcount`."""

import contextlib
import gc
import logging
import os
import sys
from typing import IO, Annotated, NoReturn, cast

import typer

from data_prep.cli import app as prep_app
from data_prep.cluster_cli import cluster
from dist_train.bench.cli import bench
from dist_train.checkpoint.cli import app as checkpoint_app
from dist_train.data.cli import app as data_app
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.cli import evaluate
from dist_train.export.cli import export
from dist_train.prune.cli import prune
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS
from dist_train.runtime.terminal import PrintableFormatter, echo
from dist_train.runtime.version import version_of
from dist_train.weights.cli import average
from dist_train.weights.cli import export as export_weights
from launch import failures
from launch.clean_cli import clean
from launch.commands import app as launch_app
from launch.embed.cli import embed
from launch.embed.search_cli import app as search_app
from launch.interrupt import interrupted, raise_once, say
from launch.serve.cli import serve
from launch.train import train

app = typer.Typer(
    name="headcount",
    help="Train embedding models on very large identity sets.",
    epilog="A first run: `make quickstart`. Each command explains itself: `headcount train --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(prep_app, name="prep")
data_app.command()(clean)
data_app.command()(cluster)
app.add_typer(data_app, name="data")
app.command()(train)
app.command(name="eval")(evaluate)
app.command()(export)
app.command()(bench)
app.command()(prune)
app.command()(embed)
app.add_typer(search_app, name="search")
app.command()(serve)
checkpoint_app.command(name="export")(export_weights)
checkpoint_app.command()(average)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(launch_app, name="launch")


def _version(asked: bool) -> None:
    if asked:
        echo(f"headcount {version_of('headcount')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Train embedding models on very large identity sets."""
    # Rank 0 speaks; the others only when something is wrong.
    first = os.environ.get("RANK", "0") == "0"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s" if first else f"rank {os.environ.get('RANK')}: %(message)s"))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, handlers=[handler])


def main() -> None:
    """Run the command line: exit status 0, 1 for a failure of the work, 2 for a user's mistake, 130 after a signal."""
    raise_once()
    end(run())


def end(status: int) -> NoReturn:
    """End the process."""
    status = failures.close_output(status)
    if "RANK" in os.environ or interrupted():
        # An interpreter that is ending has an answer of its own to another signal. And a thread of gloo that takes
        # Python's lock meanwhile aborts the process, whatever its status.
        # All that there is to close is closed by now.
        os._exit(status)
    gc.freeze()  # or it looks through all modules twice more before it ends
    sys.exit(status)


def run() -> int:
    """Run the command line and say with which status to end; messages are printed."""
    status = _run()
    if interrupted():  # whatever came of it: the library of commands ends such a one silently
        say()
        return INTERRUPTED_STATUS
    return status


def _run() -> int:
    output = failures.Output(sys.stdout)
    try:
        with contextlib.redirect_stdout(cast(IO[str], output)):
            app()
    except SystemExit as end:
        # typer ends in silence when anything finds a pipe or a file at its end, not only what is printed.
        if hidden := failures.hidden_by(end):
            return failures.report(hidden, output)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        echo(f"error: {error}", err=True)
        return 2
    except WorkError as error:
        echo(f"failed: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except Exception as error:
        # After a signal it failed for that, as for a rank that went before.
        return 1 if interrupted() else failures.report(error, output)
    return 0
