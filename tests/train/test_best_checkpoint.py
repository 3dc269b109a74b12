"""The best checkpoint by evaluation: noted once it is there, and written once."""

import json
import logging

import pytest

from dist_train.checkpoint.checkpointer import Checkpointer
from dist_train.checkpoint.store import committed_checkpoints, read_best, write_best
from tests.sets import write_set
from tests.single import trainer


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


class Judged:
    def __init__(self, score):
        self.score = score

    def figures(self):
        return {"evaluate/score": self.score}


def judged(monkeypatch, *scores):
    """Evaluations give these scores."""
    left = iter(scores)
    monkeypatch.setattr("dist_train.train.loop.evaluate_backbone", lambda *_: Judged(next(left)))


def test_the_best_is_noted_when_its_checkpoint_is_committed_and_not_before(tmp_path, tiny_set, monkeypatch):
    made = trainer(tmp_path, tiny_set)
    made.save(score=0.7)
    assert read_best(tmp_path / "run") is None, "a kill here must not leave the name of what is not there"
    assert not made.checkpointer.is_best(0.6), "the one under way counts already"
    made.checkpointer.wait()
    assert read_best(tmp_path / "run") == (0, 0.7)
    assert not made.checkpointer.is_best(0.7)
    assert made.checkpointer.is_best(0.8)
    made.close()


def test_a_best_checkpoint_that_is_not_there_is_none(tmp_path, tiny_set, monkeypatch):
    made = trainer(tmp_path, tiny_set, train__steps=2, evaluate__every_steps=2)
    (tmp_path / "run" / "checkpoints").mkdir()
    write_best(tmp_path / "run", 7, 0.9)  # as a run that was killed while it wrote step 7 has left it
    assert read_best(tmp_path / "run") is None
    judged(monkeypatch, 0.5)
    assert made.fit()
    made.close()
    assert read_best(tmp_path / "run") == (2, 0.5)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"step": 1e999, "score": 1}', "[" * 100000, "\udcff", '{"step": 0, "score": 1}' + " " * 9999),
        *('{"step": 0, "score": NaN}', '{"step": 0, "score": 1e999}', '{"step": -5, "score": 1}'),
    ],
)
def test_a_note_of_the_best_that_cannot_be_read_is_a_warning(tmp_path, content, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_bytes(content.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert read_best(tmp_path) is None
    assert "cannot be read" in caplog.text


def test_a_step_that_is_evaluated_and_saved_is_saved_once(tmp_path, tiny_set, monkeypatch):
    save, saved = Checkpointer.save, []

    def counted(self, progress, score=None):
        saved.append((progress.step, score))
        save(self, progress, score)

    monkeypatch.setattr(Checkpointer, "save", counted)
    options = {"train__steps": 5, "checkpoint__every_steps": 2, "evaluate__every_steps": 2}
    made = trainer(tmp_path, tiny_set, **options)
    judged(monkeypatch, 0.5, 0.4)
    assert made.fit()
    made.close()
    assert saved == [(2, 0.5), (4, None), (5, None)]
    assert read_best(tmp_path / "run") == (2, 0.5)


def test_old_checkpoints_that_cannot_be_removed_do_not_make_a_new_one_lost(tmp_path, tiny_set, monkeypatch, caplog):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dist_train.checkpoint.checkpointer.prune", refused)
    made = trainer(tmp_path, tiny_set, train__steps=2, checkpoint__every_steps=1)
    with caplog.at_level(logging.WARNING):
        assert made.fit()
    made.close()
    assert made.lost == []
    assert "old checkpoints" in caplog.text
    assert "NOT WRITTEN" not in caplog.text
    assert len(committed_checkpoints(tmp_path / "run")) == 2
    assert json.loads((committed_checkpoints(tmp_path / "run")[-1] / "progress.json").read_text())["step"] == 2
