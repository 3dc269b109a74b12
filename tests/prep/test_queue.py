import errno
import threading
from pathlib import Path

import pytest

from data_prep.engines.engine import Outcome
from data_prep.engines.queue import UnitQueue


@pytest.fixture
def queue(tmp_path):
    return UnitQueue.create(tmp_path / "queue", len, range(40))


def test_workers_that_know_only_the_directory_share_the_units_without_overlap(queue):
    found = {name: [] for name in ("9_0", "9_1", "9_2")}

    def work(name):
        mine = UnitQueue(queue.directory)
        assert mine.task() is len
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
    monkeypatch.setattr(Path, "write_text", refuse)
    queue.end("9_0", Outcome(unit, {}))
    assert queue.ended() == [Outcome(unit, None, "No space left on device", fatal=True)]
