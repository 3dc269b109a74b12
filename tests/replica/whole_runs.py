"""A rank that goes through whole runs one after another, since starting its process takes longer than a run.

`python -m tests.replica.whole_runs RECIPE ...` with torchrun's variables set: `headcount train` for each recipe, by a
group of ranks that is joined once. The first run that fails ends the process with its status. Plots are drawn in the
first run only: they take most of a run's time, and no strategy changes them.
"""

import sys

from matplotlib.figure import Figure

from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.train import run as run_module
from launch import cli


def main() -> int:
    ranks = join_ranks("cpu", threads=1)
    run_module.join_ranks = lambda *_: ranks
    run_module.leave_ranks = lambda _: None
    for recipe in sys.argv[1:]:
        sys.argv = ["headcount", "train", recipe]
        if status := cli.run():
            cli.end(status)
        Figure.savefig = lambda _, file, **__: file.write('<svg viewBox="0 0 1 1"></svg>')
    leave_ranks(ranks)
    return 0


if __name__ == "__main__":
    cli.end(main())
