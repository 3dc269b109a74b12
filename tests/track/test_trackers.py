"""metrics.jsonl and W&B: the same figures in both, and no trouble of theirs reaches the run."""

import errno
import logging
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.config import load_config
from dist_train.run_files import METRICS_NAME
from dist_train.track import wandb as wandb_tracker
from dist_train.track.trackers import Trackers, picture_sheet, read_metrics
from tests.launch.recipes import write_recipe
from tests.sets import write_set
from tests.single import trainer


class FakeRun:
    def __init__(self, **options):
        self.options, self.id = options, options["id"]
        self.logged, self.artifacts, self.finished = [], [], False

    def define_metric(self, *_, **__):
        pass

    def log(self, figures):
        self.logged.append(figures)

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact.name, sorted(Path(artifact.path).iterdir()), aliases))

    def finish(self):
        self.finished = True


class FakeArtifact:
    def __init__(self, name, **_):
        self.name = name

    def add_dir(self, path):
        self.path = path


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package: `runs` were begun."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**options):
        module.runs.append(FakeRun(**options))
        return module.runs[-1]

    module.init, module.login = init, lambda prompt: True
    module.Settings, module.Image, module.Artifact = dict, lambda pixels: ("image", pixels.shape), FakeArtifact
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def config(tmp_path, **overrides):
    made = load_config(write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run", **overrides))
    made.run_dir.mkdir(exist_ok=True)
    return made


def open_trackers(made, rank, resume_step):
    return Trackers(made.run_dir, made.track, made.model_dump(mode="json"), rank, resume_step)


def test_a_run_gives_the_same_figures_to_both_with_samples_and_checkpoints(tmp_path, wandb):
    write_set(tmp_path / "set")
    options = {"track__wandb": "online", "track__artifacts": True, "train__steps": 4, "optimizer__clip_norm": 5.0}
    made = trainer(tmp_path, tmp_path / "set", checkpoint__every_steps=2, checkpoint__keep=5, **options)
    assert made.fit()
    made.close()
    (run,) = wandb.runs
    assert run.finished
    assert run.options["mode"] == "online"
    assert run.options["config"]["optimizer"]["clip_norm"] == 5.0
    figures = [line for line in run.logged if "step" in line]
    assert figures == read_metrics(tmp_path / "run")
    assert [line["step"] for line in figures] == [1, 2, 3, 4]
    named = {"loss", "lr", "images_per_s", "data_wait", "head_time", "backbone_time", "gradient_norm", "memory_mb"}
    named |= {"head/target_cosine_mean", "head/target_cosine_std", "head/classes_sampled", "head/gradient_norm"}
    named |= {"epoch", "bad_steps"}
    assert named <= figures[0].keys()
    assert [line for line in run.logged if "step" not in line] == [{"samples": ("image", (4 * 32, 8 * 32, 3))}]
    names = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert sorted(aliases[1] for _, _, aliases in run.artifacts) == sorted(names)
    assert all(len(files) >= 4 for _, files, _ in run.artifacts)


def test_a_resumed_run_is_the_same_run_and_steps_made_again_are_taken_back(tmp_path, wandb):
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        trackers = open_trackers(config(tmp_path, track__wandb="online"), 0, resume_step)
        for step in steps:
            trackers.log(step, {"loss": 1.0 / step})
        trackers.close()
    first, second = wandb.runs
    assert first.id == second.id
    assert second.options["resume"] == "allow"
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_without_key_or_network_figures_are_kept_for_later(tmp_path, wandb, caplog):
    wandb.login = lambda prompt: False
    trackers = open_trackers(config(tmp_path, track__wandb="online"), 0, 0)
    trackers.log(1, {"loss": 2.0})
    trackers.close()
    assert [run.options["mode"] for run in wandb.runs] == ["offline"]
    assert wandb.runs[0].logged == [{"step": 1, "loss": 2.0}]
    assert "W&B cannot be reached (no API key on this machine)" in caplog.text
    assert "`wandb sync` sends them later" in caplog.text


def test_wandb_that_breaks_is_said_once_and_the_run_goes_on(tmp_path, wandb, monkeypatch, caplog):
    def full(self, figures):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FakeRun, "log", full)
    trackers = open_trackers(config(tmp_path, track__wandb="offline"), 0, 0)
    for step in range(1, 4):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert caplog.text.count("W&B stopped working") == 1
    assert len(read_metrics(tmp_path / "run")) == 3


def test_wandb_that_hangs_neither_stops_the_run_nor_its_end(tmp_path, wandb, monkeypatch, caplog):
    hang = threading.Event()
    wandb.init = lambda **_: hang.wait(30)
    monkeypatch.setattr(wandb_tracker, "CLOSE_S", 0.1)
    monkeypatch.setattr(wandb_tracker, "MOST_WAITING", 5)
    trackers = open_trackers(config(tmp_path, track__wandb="offline"), 0, 0)
    for step in range(1, 4):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert "W&B did not take the last figures within 0.1 s" in caplog.text
    trackers = open_trackers(config(tmp_path, track__wandb="offline"), 0, 3)
    for step in range(4, 20):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert "W&B is 5 records behind" in caplog.text
    assert len(read_metrics(tmp_path / "run")) == 19
    hang.set()


def test_a_real_wandb_run_without_network_lies_in_the_run_directory(tmp_path):
    trackers = open_trackers(config(tmp_path, track__wandb="offline"), 0, 0)
    trackers.log(1, {"loss": 1.0})
    trackers.pictures("samples", torch.zeros(3, 3, 8, 8))
    trackers.close()
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # a process of wandb's own writes it, on a busy machine after we have ended
    while any(word not in record.read_bytes() for word in (b"loss", b"samples")):
        assert time.monotonic() < deadline, "a minute later the figures are not in W&B's record"
        time.sleep(0.05)


def test_a_disk_that_refuses_figures_costs_figures_and_not_the_run(tmp_path, monkeypatch, caplog):
    trackers = open_trackers(config(tmp_path), 0, 0)
    trackers.log(1, {"loss": 1.0})
    with (tmp_path / "run" / METRICS_NAME).open("a") as file:
        file.write('{"step": 2, "lo')  # as much as the disk still took
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, "open", full)
        trackers.log(2, {"loss": 1.0})
        trackers.log(3, {"loss": 1.0})
    trackers.log(4, {"loss": 1.0})
    assert caplog.text.count("FIGURES ARE LOST") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 4]


def test_a_sheet_has_its_pictures_side_by_side_in_rows():
    pictures = np.stack([np.full((2, 2, 3), number, dtype=np.uint8) for number in range(1, 10)])
    grid = picture_sheet(pictures)
    assert grid.shape == (4, 16, 3)
    assert grid[0, ::2, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert grid[2, ::2, 0].tolist() == [9, 0, 0, 0, 0, 0, 0, 0]
