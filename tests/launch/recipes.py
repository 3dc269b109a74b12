"""A recipe that trains in seconds, and the command line as a user starts it."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile

import pytest
import yaml

from tests.ranks import forked, free_port, torchrun_variables

REFERENCE = {"checkpoint__every_steps": 100_000}
"""Of a run whose losses others are compared with: saving, of which only the last is made, changes none."""
QUICK = {"backbone__name": "nano", "train__micro_batch_size": 24}
"""A third of a step's time, for one or two ranks: where a run's steps only have to pass."""


def write_recipe(path, data, run_dir, **overrides):
    """`section__key=value` changes the recipe."""
    tree = {
        "run_dir": str(run_dir),
        "data": {"path": str(data), "workers": 0},
        "backbone": {"name": "tiny", "embedding_dim": 16},
        "head": {"scale": 16.0},
        "train": {
            "steps": 30,
            "global_batch_size": 48,
            "micro_batch_size": 8,
            "log_every": 1,
            "device": "cpu",
            "threads": 1,
        },
        "optimizer": {"lr": 0.005},
        "checkpoint": {"every_steps": 4},
        "track": {"wandb": "disabled"},
        "export": {"onnx": False},
    }
    tree["train"]["threads"] = 1  # then sums come out the same however ranks are spread over machines
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def headcount(*arguments, env=None, cwd=None):
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=env or environment(), cwd=cwd, check=False
    )


def headcount_here(*arguments, env=None):
    """The same in this process, which spares seconds of imports: for commands that start nothing by themselves."""
    from launch.cli import run

    command = ["headcount", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        for name, value in (env or environment()).items():
            patch.setenv(name, value)
        status = run()
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def headcount_forked(*arguments, ranks=1, main=None):
    """The same in one process or several ranks that need import nothing, and without an agent.

    For runs whose way of being started is not under test. They draw no report, which takes longer than many a run.
    The status is that of the first one that fails.

    Args:
        arguments: of the command.
        ranks: number of processes.
        main: another function that runs the command, from a module's top level.
    """
    command = ["headcount", *map(str, arguments)]
    port = free_port()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        processes = [
            forked(
                main or _command,
                command,
                variables=environment() | (torchrun_variables(rank, ranks, port) if ranks > 1 else {}),
                outputs=(out.fileno(), err.fileno()),
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.join(240)
            process.kill()
            process.join()
        for file in (out, err):
            file.seek(0)
        status = next((process.exitcode for process in processes if process.exitcode), 0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())


def _command(arguments):
    from launch.cli import main

    sys.modules["matplotlib"] = None  # as where it is not installed
    sys.argv = arguments
    main()
