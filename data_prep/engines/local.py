"""The engine of this machine: processes with one thread each."""

import contextlib
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait

from data_prep.engines.engine import Outcome, Task
from dist_train.runtime.processes import ONE_THREAD, child_environment


class LocalEngine:
    """The engine of `workers` processes; a process that dies fails its unit alone and is replaced."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """See `Engine`."""
        waiting = deque(units)
        workers: list[_Worker] = []
        try:
            for _ in range(min(self._workers, len(units))):
                workers.append(_Worker(task))
                workers[-1].give(waiting.popleft())
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
    """A worker process and its current unit."""

    def __init__(self, task: Task) -> None:
        self.connection, theirs = Pipe()
        self.unit: int | None = None
        self.alive = True
        with theirs:  # closed in this process, so that a dead worker shows as an end of file
            self._process = subprocess.Popen(
                [sys.executable, "-m", "data_prep.engines.local_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=child_environment(ONE_THREAD),
            )
        self._send(task)

    def give(self, unit: int) -> None:
        self.unit = unit
        self._send(unit)

    def take(self) -> Outcome:
        unit, self.unit = self.unit, None
        if unit is None:
            raise RuntimeError("`take` without a unit given")
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self.connection.close()
            return Outcome(unit, None, f"the worker died ({_status(self._process.wait())})")
        return outcome

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _send(self, message: Task | int) -> None:
        with contextlib.suppress(OSError):  # it died idle, which `take` notices
            self.connection.send(message)


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
