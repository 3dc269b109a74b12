"""What the training loop asks of its parts, and what it closes, on one rank."""

import json
import threading

import pytest
import torch
from torch import nn

from dist_train.errors import UserError
from dist_train.track.trackers import JsonlTracker, read_metrics
from dist_train.train import build as build_module
from dist_train.train.kept_buffers import KeptBuffers
from tests.processes import data_workers
from tests.sets import write_set
from tests.single import losses, trainer


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


class OwnThreads:
    """The threads of trainers that began since: a head that an earlier test left behind may still wait for its own."""

    def __init__(self):
        self.earlier = set(threading.enumerate())

    def running(self):
        names = ("row-store", "checkpoint", "watchdog")
        return [t for t in threading.enumerate() if t.name.startswith(names) and t not in self.earlier]

    def ended(self):
        """A pool's thread that has nothing left to do ends a moment later."""
        for thread in self.running():
            thread.join(10)
        return not self.running()


@pytest.fixture
def own_threads():
    return OwnThreads()


def test_rows_are_fetched_before_the_backbone_computes(tmp_path, tiny_set, monkeypatch):
    made = trainer(tmp_path, tiny_set, head__storage="host", head__sample_rate=0.5)
    calls = []
    prepare, embed = made.program.head.prepare, made.program.replica.embed
    monkeypatch.setattr(
        made.program.head, "prepare", lambda batch, *more: (calls.append(batch.labels.tolist()), prepare(batch, *more))
    )
    monkeypatch.setattr(made.program.replica, "embed", lambda images: (calls.append("embed"), embed(images))[1])
    batch = next(iter(made.loader))
    made.train_step(batch)
    made.close()
    first, second = batch.labels.chunk(2)
    assert calls == [first.tolist(), "embed", second.tolist(), "embed"]


def test_labels_are_exchanged_once_for_a_micro_batch_and_before_the_backbone_computes(tmp_path, tiny_set, monkeypatch):
    made = trainer(tmp_path, tiny_set)
    calls = []
    embed = made.program.replica.embed
    monkeypatch.setattr("dist_train.head.head.check_labels", lambda *_: calls.append("labels"))
    monkeypatch.setattr(made.program.replica, "embed", lambda images: (calls.append("embed"), embed(images))[1])
    made.train_step(next(made.loader))
    made.close()
    assert calls == ["labels", "embed", "labels", "embed"]


def test_rows_that_are_fetched_ahead_give_the_losses_of_rows_on_the_device(tmp_path, tiny_set):
    found = []
    for storage in ("device", "host"):
        (tmp_path / storage).mkdir()
        made = trainer(tmp_path / storage, tiny_set, head__storage=storage, head__sample_rate=0.5)
        found.append(losses(made, 4))
        made.close()
    assert found[0] == found[1]


@pytest.mark.job
def test_closing_ends_workers_and_threads_and_may_be_repeated(tmp_path, tiny_set, own_threads):
    made = trainer(tmp_path, tiny_set, data__workers=1, head__storage="host", train__steps=1)
    assert made.fit()
    assert data_workers()
    assert own_threads.running()
    made.close()
    made.close()
    assert not data_workers()
    assert own_threads.ended()


@pytest.mark.job
@pytest.mark.parametrize("part", ["Replicas", "Trackers", "Checkpointer"])
def test_a_start_that_fails_half_way_closes_what_it_had_opened(tmp_path, tiny_set, monkeypatch, own_threads, part):
    def fails(*_, **__):
        raise UserError("no such thing")

    monkeypatch.setattr(build_module, part, fails)
    with pytest.raises(UserError, match="no such thing"):
        trainer(tmp_path, tiny_set, data__workers=1, head__storage="host")
    assert not data_workers()
    assert own_threads.ended()


def test_buffers_come_back_as_they_were_whatever_their_type():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(2).half())
    kept = KeptBuffers(module)
    module[0](torch.randn(4, 3, 2, 2))
    before = {name: value.clone() for name, value in module.named_buffers()}
    kept.keep()
    for buffer in module.buffers():
        buffer.fill_(7) if not buffer.is_floating_point() else buffer.fill_(float("nan"))
    kept.restore()
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name]), name


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_figure_that_is_no_number_is_null_in_metrics_and_stays_so_on_resume(tmp_path):
    tracker = JsonlTracker(tmp_path, 0)
    tracker.log(1, {"loss": float("nan"), "gradient_norm": float("inf"), "lr": 0.5})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "loss": NaN}\n')  # as it was written once
        file.write(b"\xff\xfe\n" + b"[" * 100_000 + b'\n{"step": "2"}\n')
    JsonlTracker(tmp_path, 2)
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": None, "gradient_norm": None, "lr": 0.5}, {"step": 2, "loss": None}]
    assert read_metrics(tmp_path) == lines
