import errno
import os
import pickle
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from data_prep.engines.engine import Outcome
from data_prep.engines.queue import UnitQueue
from data_prep.job.work import SealUnit
from data_prep.transforms import Keep
from dist_train.errors import WorkError
from tests.prep.jobs import InProcess, content, options, run


@pytest.fixture
def queue(tmp_path):
    return UnitQueue.create(tmp_path / "queue", SealUnit(tmp_path / "set"), range(40))


def test_workers_that_know_only_the_directory_share_the_units_without_overlap(queue):
    found = {name: [] for name in ("9_0", "9_1", "9_2")}

    def work(name):
        mine = UnitQueue(queue.directory)
        assert isinstance(mine.task(), SealUnit)
        for unit in mine.take(name):
            found[name].append(unit)
            mine.end(name, Outcome(unit, {"by": name}))

    threads = [threading.Thread(target=work, args=(name,)) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(unit for units in found.values() for unit in units) == list(range(40))
    outcomes = queue.ended()
    assert {outcome.unit: outcome.summary["by"] for outcome in outcomes} == {
        unit: name for name, units in found.items() for unit in units
    }
    assert queue.ended() == [], "each is told once"
    assert queue.taken() == {}


def test_a_unit_that_was_taken_and_not_ended_names_its_worker_until_it_is_given_up(queue):
    assert next(queue.take("9_7")) == 0
    assert queue.taken() == {0: "9_7"}
    queue.give_up(0, "9_7")
    assert queue.taken() == {}
    assert next(queue.take("9_8")) == 1


def test_workers_of_a_queue_that_was_taken_away_end_after_their_unit(queue):
    units = queue.take("9_0")
    unit = next(units)
    UnitQueue(queue.directory).remove()
    queue.end("9_0", Outcome(unit, {}))
    assert list(units) == []
    assert not queue.directory.exists()


def test_a_disk_too_full_for_an_outcome_is_an_outcome(queue, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    unit = next(queue.take("9_0"))
    monkeypatch.setattr(os, "fsync", refuse)
    queue.end("9_0", Outcome(unit, {}))
    assert queue.ended() == [Outcome(unit, None, "No space left on device", fatal=True)]


class ThroughQueue(InProcess):
    """An engine whose only worker is one that an array of Slurm would start: it knows nothing but the queue."""

    def __init__(self, home):
        super().__init__()
        self.home = home

    def run(self, task, units):
        queue = UnitQueue.create(self.home / f"{len(self.units)}-{type(task).__name__}", task, units)
        self.units += units
        variables = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        worker = [sys.executable, "-m", "data_prep.engines.array_worker", str(queue.directory)]
        subprocess.run(worker, env=os.environ | variables, check=True, capture_output=True, cwd=self.home)
        yield from queue.ended()


def test_a_worker_makes_and_seals_with_no_more_than_the_queue_and_the_plan(tmp_path):
    for number in range(8):
        folder = tmp_path / "photos" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 16, 3), 9 * number, np.uint8))
    job = options(tmp_path / "photos", Keep(image_size=16), unit_rows=3)
    run(tmp_path / "out", job, ThroughQueue(tmp_path))
    run(tmp_path / "one", job)
    assert content(tmp_path / "out") == content(tmp_path / "one")


class Attack:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "text",
    [
        '{"task": "os.mkdir", "out": "x"}',
        "[" * 100_000,
        "5",
        "{",
        '{"task": "make"}',
        '{"task": "make", "out": "x"}',
        '{"task": "make", "out": "x", "units": "../../other"}',
        "",
    ],
)
def test_a_queue_that_somebody_changed_has_no_task(queue, tmp_path, text):
    (queue.directory / "task.pickle").write_bytes(pickle.dumps(Attack(tmp_path / "mark")))
    (queue.directory / "task.json").write_text(text)
    with pytest.raises(WorkError, match=r"task\.json: no task of this program"):
        queue.task()
    assert not (tmp_path / "mark").exists()
