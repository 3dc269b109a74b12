"""A process of `LocalEngine`: `python -m data_prep.engines.local_worker FD`, where FD is its end of a connection.

It is a program of its own, because a process that `multiprocessing` spawns imports the parent's program first, and with
it libraries that no worker needs and that take seconds.
"""

import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

from data_prep.engines.engine import attempt
from dist_train.runtime.imports import quick_imports


def main() -> None:
    """Receive the task, then do units until the job closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job decides what an interrupt means
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_follow_job, args=(connection.fileno(),), daemon=True).start()
    try:
        with quick_imports():  # of what the task uses
            task = connection.recv()
        while True:
            connection.send(attempt(task, connection.recv()))
    except (EOFError, OSError):  # of the connection; an exception of a unit is its outcome
        return


def _follow_job(fd: int) -> None:
    """End this process when the job has ended in any way, even within a unit, whose result nobody would take."""
    hung_up = select.poll()
    hung_up.register(fd, 0)  # hang-ups and errors are always reported
    hung_up.poll()
    os._exit(1)


if __name__ == "__main__":
    main()
