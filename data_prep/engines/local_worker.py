"""A process of `LocalEngine`: `python -m data_prep.engines.local_worker FD`, where FD is its end of a connection.

A program of its own: what `multiprocessing` spawns imports the parent's program first, and with it seconds of
libraries that no worker needs.
"""

import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

from data_prep.engines.engine import attempt


def main() -> None:
    """Receive the task, then do units until the job closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job decides what an interrupt means
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_follow_job, args=(connection.fileno(),), daemon=True).start()
    try:
        task = connection.recv()
        while True:
            connection.send(attempt(task, connection.recv()))
    except (EOFError, OSError):  # of the connection; what a unit raises is its outcome
        return


def _follow_job(fd: int) -> None:
    """End with the job, however it ends and whatever the unit is at: nobody would take its result."""
    hung_up = select.poll()
    hung_up.register(fd, 0)  # that, and errors, are always told
    hung_up.poll()
    os._exit(1)


if __name__ == "__main__":
    main()
