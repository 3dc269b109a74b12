"""Python processes that this package starts: where they look for modules, and how many threads they use.

Both are settled by the environment, before the process begins: libraries read the number of threads when they are
loaded, which may be before the process's own first line. Started by `-m` or `-c`, Python looks for modules in the
working directory before all else, so that a folder there named like an optional module of a library (torch tries
`z3`) is imported in its place; with the safe path it does not. Processes started in turn inherit that.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # as `python -P`


def threads(count: int) -> dict[str, str]:
    """Variables that give a process `count` threads in each library."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    return dict.fromkeys(names, str(count))


ONE_THREAD = threads(1)


def child_environment(variables: dict[str, str]) -> dict[str, str]:
    """The environment of a process that finds the modules that this one finds, with `variables` besides."""
    return os.environ | SAFE_PATH | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables


@contextmanager
def spawning(variables: dict[str, str]) -> Iterator[None]:
    """Meanwhile `multiprocessing` spawns processes with a safe path and `variables`; this one is left as it was."""
    given = SAFE_PATH | variables
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
