"""`headcount bench`: models take turns, and what was timed is said as it was."""

import json
import sys

import pytest
import torch

from dist_train.bench.contender import Contender
from dist_train.bench.report import timings_table
from dist_train.bench.rounds import Case, Timing, measure
from launch.cli import run
from tests.embed.models import write_model


class Machine:
    """A clock, and models that take their time on it."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def clock(self):
        return self.now

    def model(self, name, seconds):
        def embed(images):
            self.called.append(name)
            self.now += seconds(len(self.called)) if callable(seconds) else seconds
            return images.flatten(1)[:, :2]

        return Contender(name, "pytorch float32", 8, None, lambda threads: embed)


def test_models_take_turns_in_alternating_order_and_a_turn_begins_untimed():
    machine = Machine()
    models = [machine.model("a", 0.004), machine.model("b", 0.02)]
    slow, fast = measure(models, Case(1, 4), 3, 2, 10.0, machine.clock)
    # Ten milliseconds untimed: three calls of a, one of b.
    assert machine.called == [*"aaaaabbb", *"bbbaaaaa", *"aaaaabbb"]
    assert slow.seconds == pytest.approx([0.004] * 6)
    assert fast.images_per_s == pytest.approx(4 / 0.02)


def test_time_that_is_up_ends_rounds_and_turns_but_not_the_first_three():
    machine = Machine()
    (one,) = measure([machine.model("slow", 7.0)], Case(1, 1), 50, 10, 1.0, machine.clock)
    assert len(one.seconds) == 3


def test_threads_are_set_while_it_is_timed_and_brought_back():
    seen, before = [], torch.get_num_threads()

    def opened(threads):
        seen.append(threads)
        return lambda images: (seen.append(torch.get_num_threads()), images)[1]

    measure([Contender("m", "pytorch float32", 4, None, opened)], Case(2, 1), 3, 1, 0.01)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_the_99th_percentile_is_given_of_a_hundred_calls_alone():
    calls = tuple(i / 1000 for i in range(1, 101))
    assert Timing("m", "f", Case(1, 1), calls).latency_ms() == pytest.approx({50: 50.5, 90: 90.1, 99: 99.01})
    assert set(Timing("m", "f", Case(1, 1), calls[1:]).latency_ms()) == {50, 90}


def test_the_table_compares_with_the_first_model_of_the_same_case():
    timings = [Timing(n, "onnx", Case(t, 1), (s,)) for t, n, s in ((1, "a", 2.0), (1, "b", 1.0), (2, "a", 1.0))]
    machine = {"processor": "P", "cores": 2, "instructions": [], "load": 0.0}
    rows = [[cell.text for cell in row] for row in timings_table(timings, machine).rows]
    assert [row[-1] for row in rows] == ["x1.00", "x2.00", "x1.00"]
    assert not timings_table(timings, machine | {"load": 0.1}).notes[1:]
    assert "other work" in timings_table(timings, machine | {"load": 3.0}).notes[1]


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["headcount", "bench", *map(str, words)])
    status = run()
    return status, capsys.readouterr()


def test_onnx_files_are_timed_and_written_as_json(monkeypatch, capsys, tmp_path):
    models = [write_model(tmp_path / f"{name}.onnx", cells=cells) for name, cells in (("a", 4), ("b", 2))]
    words = ("--batch", 1, "--batch", 3, "--threads", 1, "--rounds", 3, "--calls", 2, "--json", tmp_path / "s.json")
    status, said = call(monkeypatch, capsys, *models, *words)
    assert status == 0, said.err
    assert "onnx float32" in said.out
    body = json.loads((tmp_path / "s.json").read_text())
    assert [(t["model"], t["batch"], t["calls"]) for t in body["timings"]] == [
        ("a", 1, 6),
        ("b", 1, 6),
        ("a", 3, 6),
        ("b", 3, 6),
    ]
    assert body["machine"]["processor"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "model nothing: expected a run directory"),
        (("nothing.onnx",), "no such file"),
        (("m.onnx", "--threads", "1000"), "this process may use"),
        (("m.onnx", "--device", "tpu"), "expected auto, cpu or cuda"),
        (("m.onnx", "--json", "no/where.json"), "no such directory"),
        (("e.engine",), "e.onnx is not beside it"),
        (("broken.onnx",), "onnxruntime cannot load it"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_is(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx")
    (tmp_path / "e.engine").write_bytes(b"engine")
    (tmp_path / "broken.onnx").write_bytes(b"\x00" * 99)
    status, captured = call(monkeypatch, capsys, *words)
    assert status == 2
    assert said in " ".join(captured.err.split())
