"""`headcount` as a user types it, timed from outside: what a benchmark of a command measures."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from dist_train.runtime.processes import ONE_THREAD


class Told(NamedTuple):
    """How a command went.

    Attributes:
        began: when it was started, seconds since the epoch as files' times are.
        seconds: until it had ended.
        output: what it printed.
    """

    began: float
    seconds: float
    output: str


def headcount(*arguments: str | Path) -> Told:
    """Run `headcount ARGUMENTS` in a process of its own, without any variable that says how many threads to use.

    Raises:
        RuntimeError: it ended with another status than 0.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    command = [str(Path(sys.executable).with_name("headcount")), *map(str, arguments)]
    began, begin = time.time(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr}")
    return Told(began, seconds, done.stdout)
