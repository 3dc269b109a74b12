"""A rank that goes through whole runs one after another, since starting its process takes longer than a run.

`headcount train` for each recipe, by a group of ranks that is joined once. The first run that fails ends the process
with its status. Plots are drawn in the first run only: they take most of a run's time, and no strategy changes them.
"""

import sys

from matplotlib.figure import Figure

from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.train import run as run_module
from launch import cli


def run(command: list[str]) -> None:
    """Go through the recipes that follow the command's name, with torchrun's variables set, and end the process."""
    cli.end(_train(command[1:]))


def _train(recipes: list[str]) -> int:
    ranks = join_ranks("cpu", threads=1)
    run_module.join_ranks = lambda *_: ranks
    run_module.leave_ranks = lambda _: None
    for recipe in recipes:
        sys.argv = ["headcount", "train", recipe]
        if status := cli.run():
            cli.end(status)
        Figure.savefig = lambda _, file, **__: file.write('<svg viewBox="0 0 1 1"></svg>')
    leave_ranks(ranks)
    return 0
