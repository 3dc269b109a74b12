"""A queue of units in a shared directory, for workers that share nothing else.

    task.json      the name of a task, the directory of the job, and that of the files of units
    todo/UNIT      an empty file for each unit that nobody has
    taken/UNIT@W   the same file, while worker W has it: taking a unit is a rename, which only one worker can win
    ended/UNIT     the unit's outcome as JSON; empty where the disk was too full to write it

A worker ends when the directory is gone: so a job that starts again gets rid of old workers.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.engines.engine import Outcome, Task, is_fatal
from data_prep.job.plan import AGAIN, UNITS
from data_prep.job.work import MakeUnit, SealUnit
from dist_train.errors import WorkError
from dist_train.runtime.files import read_bounded
from dist_train.runtime.written import write_text

TASKS: dict[str, type[MakeUnit] | type[SealUnit]] = {"make": MakeUnit, "seal": SealUnit}
_TASK = "task.json"
_MAX_TASK_BYTES = 1 << 16
_MAX_OUTCOME_BYTES = 1 << 24


class UnitQueue:
    """The queue in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._todo, self._taken, self._ended = (directory / name for name in ("todo", "taken", "ended"))
        self._told: set[str] = set()

    @classmethod
    def create(cls, directory: Path, task: Task, units: Sequence[int]) -> "UnitQueue":
        """A new queue of `units`."""
        queue = cls(directory)
        for folder in (queue._todo, queue._taken, queue._ended):
            folder.mkdir(parents=True)
        if not isinstance(task, MakeUnit | SealUnit):
            raise TypeError(f"{task!r} is none of {', '.join(TASKS)}, which workers of a queue can find again")
        name = next(name for name, kind in TASKS.items() if isinstance(task, kind))
        body = {"task": name, "out": str(task.out)}
        if isinstance(task, MakeUnit):
            body["units"] = task.units
        (directory / _TASK).write_text(json.dumps(body), encoding="utf-8")
        for unit in units:
            (queue._todo / f"{unit:06d}").touch()
        return queue

    def remove(self) -> None:
        """Delete the queue: each worker ends after its current unit."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def task(self) -> Task:
        """The task of the queue.

        Raises:
            WorkError: `task.json` is missing or damaged.
        """
        try:
            body = json.loads(read_bounded(self.directory / _TASK, _MAX_TASK_BYTES))
            kind, out = TASKS[body["task"]], Path(body["out"])
            if kind is SealUnit:
                return SealUnit(out)
            if body["units"] not in (UNITS, AGAIN):
                raise ValueError(f"files of units in {body['units']!r}, expected {UNITS} or {AGAIN}")
            return MakeUnit(out, units=body["units"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WorkError(f"{self.directory / _TASK}: no task of this program: {error!r}") from error

    def take(self, worker: str) -> Iterator[int]:
        """Units for `worker`, one after another, until none is left."""
        while True:
            try:
                names = sorted(path.name for path in self._todo.iterdir())
            except FileNotFoundError:
                return
            if not names:
                return
            for name in names:
                try:
                    (self._todo / name).rename(self._taken / f"{name}@{worker}")
                except FileNotFoundError:
                    continue  # another worker has it
                yield int(name)

    def end(self, worker: str, outcome: Outcome) -> None:
        """Record the outcome of a unit of `worker`."""
        name = f"{outcome.unit:06d}"
        mine, target = self._taken / f"{name}@{worker}", self._ended / name
        try:
            write_text(target, json.dumps(outcome))
        except FileNotFoundError:  # the job has deleted the queue
            return
        except OSError as error:
            if not is_fatal(error):
                raise
            mine.replace(target)  # a rename takes no disk space
            return
        with contextlib.suppress(FileNotFoundError):
            mine.unlink()

    def ended(self) -> list[Outcome]:
        """Outcomes since the last call."""
        new = sorted(path.name for path in self._ended.iterdir() if path.name not in self._told and path.name[0] != ".")
        self._told.update(new)
        return [self._outcome(name) for name in new]

    def taken(self) -> dict[int, str]:
        """Units in work, with their workers."""
        found = dict(path.name.split("@", 1) for path in self._taken.iterdir())
        return {int(name): worker for name, worker in found.items() if not (self._ended / name).exists()}

    def give_up(self, unit: int, worker: str) -> None:
        """Drop a unit whose worker is dead."""
        (self._taken / f"{unit:06d}@{worker}").unlink()

    def _outcome(self, name: str) -> Outcome:
        unit = int(name)
        try:
            text = read_bounded(self._ended / name, _MAX_OUTCOME_BYTES)
            if not text:
                return Outcome(unit, None, "No space left on device", True)
            _, summary, error, fatal = json.loads(text)
            if not isinstance(summary, dict | None) or not isinstance(error, str) or not isinstance(fatal, bool):
                raise ValueError("values of other types")
        except (OSError, ValueError, TypeError, RecursionError) as damage:  # the unit is made once more
            return Outcome(unit, None, f"{self._ended / name}: damaged: {damage}")
        return Outcome(unit, summary, error, fatal)
