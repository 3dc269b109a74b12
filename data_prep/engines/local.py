"""Processes of this machine, one thread each."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from data_prep.engines.engine import ONE_THREAD, Outcome, Task, attempt


class LocalEngine:
    """`workers` processes. One that dies fails its unit alone, and is replaced."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """See `Engine`."""
        waiting = deque(units)
        workers = [_Worker(task) for _ in range(min(self._workers, len(units)))]
        try:
            for worker in workers:
                worker.give(waiting.popleft())
            while busy := [worker for worker in workers if worker.unit is not None]:
                ready = wait([worker.connection for worker in busy])
                for worker in busy:
                    if worker.connection not in ready:
                        continue
                    outcome = worker.take()
                    if not worker.alive:
                        workers.remove(worker)
                        if waiting:
                            worker = _Worker(task)
                            workers.append(worker)
                    if waiting:
                        worker.give(waiting.popleft())
                    yield outcome
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """One process and the unit that it has."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.unit: int | None = None
        self.alive = True
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, task), daemon=True)
        self._process.start()
        theirs.close()  # so that a dead worker is an end of file here

    def give(self, unit: int) -> None:
        self.unit = unit
        with contextlib.suppress(OSError):  # it died idle: `take` will find that out
            self.connection.send(unit)

    def take(self) -> Outcome:
        unit, self.unit = self.unit, None
        if unit is None:
            raise RuntimeError("`take` without a unit given")
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            return Outcome(unit, None, f"the worker died ({_status(self._process.exitcode)})")
        return outcome

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _status(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _serve(connection: Connection, task: Task) -> None:
    """Life of a worker."""
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job decides what an interrupt means
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        connection.send(attempt(task, unit))


def _follow_parent() -> None:
    """End with the job, however it ends: nobody would take this worker's result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
