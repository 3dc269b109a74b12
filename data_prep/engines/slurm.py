"""The engine of a Slurm array: every task of the array takes units from a queue on the shared file system.

Tasks are workers, not units: a job may have more units than an array may have tasks, and a worker loads the detector
once. The job waits in the process that started it. If that process is killed the array works on, and the next start of
the job stops it first. A task that dies fails its unit alone. When all tasks are gone (a time limit, preemption) and
units are left, another array is submitted.
"""

import logging
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from data_prep.engines.engine import Outcome, Task
from data_prep.engines.queue import UnitQueue
from dist_train.errors import UserError, WorkError
from dist_train.runtime.processes import ONE_THREAD, SAFE_PATH

logger = logging.getLogger(__name__)

NAME = "headcount-prep-"
_TOKEN = re.compile("[0-9a-f]{8}")
_LOOK_EVERY_S = 1.0  # at the queue's files
_ASK_EVERY_S = 10.0  # Slurm's controller
_STOPPING_S = 120.0


class SlurmEngine:
    """The engine of a Slurm array of `tasks` tasks, one core each.

    Args:
        home: directory for queues and logs, which all nodes see.
        tasks: number of tasks in the array.
        options: further options of sbatch, without dashes, e.g. `partition=cpu`.
        ask_every_s: seconds between questions to Slurm for the tasks that are left.
    """

    def __init__(self, home: Path, tasks: int, options: Sequence[str] = (), ask_every_s: float = _ASK_EVERY_S) -> None:
        self._home = home.absolute()
        self._tasks = tasks
        self._options = options
        self._ask_every_s = ask_every_s

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """See `Engine`.

        Raises:
            UserError: Slurm is not on this machine, or refuses the options.
            WorkError: an array ended without a single unit done.
        """
        token = secrets.token_hex(4)
        queue = UnitQueue.create(self._home / token, task, units)
        left, submitted = set(units), False
        try:
            while left:
                before = len(left)
                self._submit(queue, min(self._tasks, len(left)))
                submitted = True
                for outcome in self._watch(queue, left):
                    left.discard(outcome.unit)
                    yield outcome
                if len(left) == before:
                    raise WorkError(f"an array of Slurm ended without a unit of work done; see {self._log('*')}")
        finally:
            if submitted:
                _stop(token)
            queue.remove()

    def _submit(self, queue: UnitQueue, tasks: int) -> None:
        environment = [f"{name}={value}" for name, value in (ONE_THREAD | SAFE_PATH).items()]
        worker = [sys.executable, "-m", "data_prep.engines.array_worker", str(queue.directory)]
        options = [
            f"--job-name={NAME}{queue.directory.name}",
            f"--array=0-{tasks - 1}",
            "--ntasks=1",
            "--cpus-per-task=1",
            "--no-requeue",  # the job decides which units are tried again
            f"--output={self._log('%a')}",
            "--open-mode=append",
            *(f"--{option}" for option in self._options),
        ]
        number = _slurm("sbatch", "--parsable", *options, "--wrap", shlex.join(["exec", "env", *environment, *worker]))
        logger.info("Slurm job %s: %d tasks; logs: %s", number.strip(), tasks, self._log("*"))

    def _log(self, task: str) -> Path:
        return self._home / f"log-{task}.txt"

    def _watch(self, queue: UnitQueue, left: set[int]) -> Iterator[Outcome]:
        """Outcomes until no unit is left, or no task."""
        asked = -self._ask_every_s
        active: set[str] = set()
        while left:
            # Slurm is asked before the queue is read: files of a task that has ended are then complete.
            known = time.monotonic() - asked < self._ask_every_s
            if not known:
                active, asked = _tasks(queue.directory.name), time.monotonic()
            yield from queue.ended()
            if not known:
                for unit, worker in queue.taken().items():
                    if worker not in active:
                        queue.give_up(unit, worker)
                        log = self._log(worker.partition("_")[2])
                        yield Outcome(unit, None, f"the worker died (Slurm task {worker}, {_state(worker)}; {log})")
                if not active:
                    return
            time.sleep(min(_LOOK_EVERY_S, self._ask_every_s))


def stop_left_over(home: Path) -> None:
    """Stop the arrays that an earlier start of the job left running.

    Raises:
        UserError: Slurm is not on this machine.
    """
    # A name of another form, such as one with a comma, could name other people's jobs.
    for directory in sorted(path for path in home.glob("*") if _TOKEN.fullmatch(path.name) and path.is_dir()):
        try:
            _stop(directory.name)
        except UserError as error:
            raise UserError(
                f"Slurm job {NAME}{directory.name} of an earlier start may still be at work; run this where Slurm is, "
                f"or, if that job is over, remove {directory}"
            ) from error
        UnitQueue(directory).remove()


def _stop(token: str) -> None:
    deadline = time.monotonic() + _STOPPING_S
    while _tasks(token):
        _slurm("scancel", f"--name={NAME}{token}")
        if time.monotonic() > deadline:
            raise WorkError(f"Slurm job {NAME}{token} does not end {_STOPPING_S:.0f} s after scancel; wait for its end")
        time.sleep(0.5)


def _tasks(token: str) -> set[str]:
    """Tasks of an array that wait, run or are about to end, as JOB_TASK."""
    while True:
        try:
            return set(_slurm("squeue", "--noheader", "--array", f"--name={NAME}{token}", "--format=%F_%K").split())
        except WorkError as error:  # the controller may be restarting
            logger.warning("%s", error)
            time.sleep(_ASK_EVERY_S)


def _state(worker: str) -> str:
    try:
        words = _slurm("scontrol", "show", "job", "--oneliner", worker).split()
    except WorkError:
        return "forgotten by Slurm"
    return next((word.partition("=")[2] for word in words if word.startswith("JobState=")), "state unknown")


def _slurm(*command: str) -> str:
    """Output of one of Slurm's commands."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on this machine; run this on a node from which Slurm is used") from error
    if done.returncode:
        lines = [line.removeprefix(f"{command[0]}: error: ") for line in done.stderr.strip().splitlines()]
        message = "; ".join(lines) or f"exit status {done.returncode}"
        if command[0] == "sbatch":
            raise UserError(f"sbatch refuses: {message}; change --sbatch or --workers")
        raise WorkError(f"{command[0]}: {message}")
    return done.stdout
