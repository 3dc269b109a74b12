"""What a run cannot make costs that alone: the rest is made, and the end says what is lost, with status 1."""

import errno
import json
import os
import signal

import pytest
from torch.distributed.checkpoint import FileSystemWriter

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.errors import WorkError
from dist_train.track.trackers import read_metrics
from dist_train.train import finish
from dist_train.train.loop import Loop
from dist_train.train.run import run
from tests.launch.recipes import write_recipe
from tests.sets import write_pairs, write_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def recipe(tmp_path, tiny_set, **overrides):
    options = {"train__steps": 4, "train__micro_batch_size": 24, "checkpoint__every_steps": 2} | overrides
    return load_config(write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", **options))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def results(tmp_path):
    return {path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".json", ".html", ".onnx")}


def test_a_last_checkpoint_that_cannot_be_written_ends_with_what_is_lost_after_all_else_is_made(
    tmp_path, tiny_set, monkeypatch
):
    write, calls = FileSystemWriter.write_data, []

    def full_after_the_first(self, *arguments):
        calls.append(self)
        return write(self, *arguments) if len(calls) == 1 else full()

    monkeypatch.setattr(FileSystemWriter, "write_data", full_after_the_first)
    with pytest.raises(WorkError) as caught:
        run(recipe(tmp_path, tiny_set), resume=False)
    message = str(caught.value)
    assert "lost: the checkpoint of step 4: " in message
    assert "No space left on device; the newest complete one is step-00000002" in message
    assert "there are: step-00000002, summary.json, report.html" in message
    assert results(tmp_path) == {"summary.json", "report.html"}


def test_a_disk_that_has_room_again_at_the_end_gets_the_last_checkpoint(tmp_path, tiny_set, monkeypatch):
    write, calls = FileSystemWriter.write_data, []

    def full_once(self, *arguments):
        calls.append(self)
        return full() if len(calls) == 2 else write(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", full_once)
    assert run(recipe(tmp_path, tiny_set), resume=False) == 0
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step-00000004"


def test_a_stopped_run_without_its_checkpoint_does_not_say_that_it_was_written(tmp_path, tiny_set, monkeypatch, caplog):
    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    step = Loop.train_step

    def asked(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Loop, "train_step", asked)
    with pytest.raises(WorkError, match=r"(?s)stopped at step 1 of 4.*lost: the checkpoint of step 1.*no older one"):
        run(recipe(tmp_path, tiny_set), resume=False)
    assert "checkpoint written" not in caplog.text


def test_whoever_asks_to_stop_in_the_last_step_does_not_wait_for_evaluation_and_export(tmp_path, tiny_set, monkeypatch):
    step = Loop.train_step

    def asked(self, batch):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Loop, "train_step", asked)
    assert run(recipe(tmp_path, tiny_set), resume=False) == 130
    assert results(tmp_path) == set()
    monkeypatch.undo()
    assert run(recipe(tmp_path, tiny_set), resume=True) == 0
    assert results(tmp_path) == {"summary.json", "report.html"}


def test_sets_that_cannot_be_read_cost_their_evaluations_and_not_the_training(tmp_path, tiny_set, caplog):
    (tmp_path / "pairs.bin").write_bytes(b"not a pickle")
    config = recipe(tmp_path, tiny_set, evaluate__verification=[str(tmp_path / "pairs.bin")], evaluate__every_steps=2)
    with pytest.raises(WorkError) as caught:
        run(config, resume=False)
    for when in ("the evaluation at step 2", "the evaluation at step 4", "the evaluation at the end"):
        assert f"lost: {when}: verification set {tmp_path}/pairs.bin: " in str(caught.value)
    assert "EVALUATION LOST at step 2" in caplog.text
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step-00000004"
    assert results(tmp_path) == {"summary.json", "report.html"}
    assert "verification_accuracy" not in json.loads((tmp_path / "run" / "summary.json").read_text())
    # Mended, the same run makes what was lost.
    write_pairs(tmp_path / "pairs.bin")
    assert run(config, resume=True) == 0
    assert "verification_accuracy" in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_failed_export_costs_neither_summary_nor_report(tmp_path, tiny_set, monkeypatch):
    write_pairs(tmp_path / "pairs.bin")

    def fails(*_, **__):
        assert results(tmp_path) == {"summary.json", "report.html"}, "written before the export"
        raise RuntimeError("z3 has no attribute Solver")

    monkeypatch.setattr("dist_train.export.onnx.export_onnx", fails)
    config = recipe(tmp_path, tiny_set, export__onnx=True, evaluate__verification=[str(tmp_path / "pairs.bin")])
    with pytest.raises(WorkError) as caught:
        run(config, resume=False)
    assert "lost: model.onnx: RuntimeError: z3 has no attribute Solver" in str(caught.value)
    assert "there are: step-00000004, summary.json, report.html" in str(caught.value)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "verification_accuracy" in summary
    assert "onnx_max_abs_diff" not in summary
    assert "evaluate/score" in read_metrics(tmp_path / "run")[-1]


def test_a_summary_and_a_report_that_the_disk_refuses_are_named(tmp_path, tiny_set, monkeypatch):
    def refused(path, report):
        raise WorkError(f"report {path}: cannot be written: No space left on device")

    monkeypatch.setattr(finish, "write_report", refused)
    monkeypatch.setattr(finish, "write_json", full)
    with pytest.raises(WorkError) as caught:
        run(recipe(tmp_path, tiny_set), resume=False)
    assert "lost: summary.json: cannot be written: No space left on device" in str(caught.value)
    assert "lost: report.html: report " in str(caught.value)
    assert "there are: step-00000004;" in str(caught.value)
