"""What a run does on its way back from a checkpoint, on one rank."""

import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from dist_train.checkpoint import checkpointer as checkpoint_module
from dist_train.checkpoint.load import checkpoint_to_resume, newest_sound_checkpoint
from dist_train.checkpoint.store import checksums_path, committed_checkpoints, damage, read_best, read_progress
from dist_train.config import load_config
from dist_train.errors import UserError, WorkError
from dist_train.track.trackers import read_metrics
from dist_train.train.run import run
from dist_train.train.run_dir import open_run_dir
from tests.launch.recipes import write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import ALONE, losses, trainer


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_set):
    """A run of six steps with checkpoints at steps 2, 4 and 6."""
    path = tmp_path_factory.mktemp("finished")
    made = trainer(path, tiny_set, train__steps=6, checkpoint__every_steps=2, checkpoint__keep=3)
    assert made.fit()
    made.close()
    return path


def copy_of(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def cut(checkpoint):
    file = next(checkpoint.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])


def flip(checkpoint):
    file = next(checkpoint.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "bytes, expected"),
        (flip, "has another checksum than when it was written"),
        (lambda path: next(path.glob("*.distcp")).unlink(), "is missing"),
        (lambda path: (path / "progress.json").unlink(), "progress.json is missing"),
        (lambda path: checksums_path(path, 0).unlink(), "no checksums"),
        (lambda path: checksums_path(path, 0).write_text("[]"), "is not a list of checksums"),
        (
            lambda path: checksums_path(path, 0).write_text(json.dumps({"ranks": 2, "files": {}})),
            "checksums-1.json is missing",
        ),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(finished, tmp_path, harm, message, caplog):
    run_dir = copy_of(finished, tmp_path)
    harm(run_dir / "checkpoints" / "step-00000006")
    with caplog.at_level(logging.WARNING):
        assert newest_sound_checkpoint(run_dir, ALONE).name == "step-00000004"
    assert "step-00000006 is damaged and passed over" in caplog.text
    assert message in caplog.text


@pytest.mark.parametrize("steps", [6, 8])
@pytest.mark.parametrize("harm", [cut, lambda path: (path / ".metadata").unlink()], ids=["cut", "no metadata"])
def test_a_step_whose_checkpoint_is_damaged_is_written_anew_and_what_was_there_is_kept(
    finished, tmp_path, tiny_set, caplog, harm, steps
):
    run_dir = copy_of(finished, tmp_path)
    harm(run_dir / "checkpoints" / "step-00000006")
    options = {"train__micro_batch_size": 24, "train__steps": steps, "checkpoint__every_steps": 1}
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, run_dir, checkpoint__keep=1, **options)
    assert run(load_config(recipe), resume=True, allow_changes=True) == 0
    (newest,) = committed_checkpoints(run_dir)
    assert newest.name == f"step-{steps:08d}"
    assert damage(newest) == []
    assert (run_dir / "checkpoints" / "damaged-step-00000006").is_dir()
    assert "step-00000006 is kept as damaged-step-00000006, which no run reads or removes" in caplog.text


def resumed_from(rank, world_size, run_dir):
    return checkpoint_to_resume(run_dir, ranks_here(rank, world_size))


def test_ranks_set_one_checkpoint_aside_together_and_those_before_it_stay(finished, tmp_path):
    run_dir = copy_of(finished, tmp_path)
    flip(run_dir / "checkpoints" / "step-00000006")
    (run_dir / "checkpoints" / "damaged-step-00000006").mkdir()  # of an earlier day
    sound = run_dir / "checkpoints" / "step-00000004"
    assert run_ranks(2, resumed_from, run_dir) == [sound, sound]
    assert damage(sound) == []
    assert sorted(path.name for path in sound.parent.glob("*step*")) == [
        "damaged-step-00000006",
        "damaged-step-00000006-2",
        "step-00000002",
        "step-00000004",
    ]


def test_a_damaged_checkpoint_that_cannot_be_set_aside_is_a_users_mistake_that_names_it(
    finished, tmp_path, monkeypatch
):
    run_dir = copy_of(finished, tmp_path)
    cut(run_dir / "checkpoints" / "step-00000006")

    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(
        UserError, match="step-00000006 is damaged and cannot be renamed to damaged-step-00000006: Read"
    ):
        checkpoint_to_resume(run_dir, ALONE)


@pytest.mark.parametrize("method", ["open", "lstat", "iterdir", "exists"])
def test_a_newest_checkpoint_that_cannot_be_read_is_passed_over_too(finished, tmp_path, monkeypatch, caplog, method):
    run_dir = copy_of(finished, tmp_path)
    works = {name: getattr(Path, name) for name in (method, "iterdir")}

    def failing(name):
        def fails(self, *arguments, **options):
            if "step-00000006" in str(self) and (name != "open" or self.suffix == ".distcp"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return works[name](self, *arguments, **options)

        return fails

    # A directory that may not be searched refuses both.
    for name in {method} | ({"iterdir"} if method == "exists" else set()):
        monkeypatch.setattr(Path, name, failing(name))
    assert newest_sound_checkpoint(run_dir, ALONE).name == "step-00000004"
    assert "step-00000006 is damaged and passed over: " in caplog.text
    assert "cannot be read: Input/output error" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(finished, tmp_path, caplog):
    run_dir = copy_of(finished, tmp_path)
    for checkpoint in committed_checkpoints(run_dir):
        cut(checkpoint)
    assert newest_sound_checkpoint(run_dir, ALONE) is None
    assert caplog.text.count("is damaged and passed over") == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": 12}, r"num_classes: 10 -> 12\n  data_digest: \w+ -> \w+\nbring that set back"),
        ({"views": 9}, r"data than data.path holds now:\n  data_digest: \w+ -> \w+\n"),
        ({"size": 40}, "image_size: 32 -> 40"),
    ],
)
def test_other_data_are_refused_key_by_key(finished, tmp_path, other, message):
    write_set(tmp_path / "other", **other)
    copy_of(finished, tmp_path)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, tmp_path / "other", newest_sound_checkpoint(tmp_path / "run", ALONE))


def test_rows_that_the_checkpoint_replaces_are_not_drawn(finished, tmp_path, tiny_set, monkeypatch):
    copy_of(finished, tmp_path)
    monkeypatch.setattr("dist_train.head.open_rows.fill_normal", None)
    made = trainer(tmp_path, tiny_set, newest_sound_checkpoint(tmp_path / "run", ALONE), train__steps=8)
    assert made.program.head.class_centers().norm(dim=1).min() > 0
    made.close()


def test_another_model_is_refused_with_the_checkpoint_named(finished, tmp_path, tiny_set):
    copy_of(finished, tmp_path)
    with pytest.raises(WorkError, match=r"checkpoint .*step-00000006: cannot be loaded"):
        trainer(tmp_path, tiny_set, newest_sound_checkpoint(tmp_path / "run", ALONE), backbone__embedding_dim=24)


def test_a_changed_configuration_is_told_key_by_key_and_accepted_only_when_asked(finished, tmp_path, tiny_set, caplog):
    run_dir = copy_of(finished, tmp_path)
    changes = {"optimizer__lr": 0.5, "head__scale": 8.0, "train__steps": 6, "train__micro_batch_size": 24}
    changes |= {"checkpoint__every_steps": 2, "checkpoint__keep": 3}
    new = load_config(write_recipe(tmp_path / "new.yaml", tiny_set, run_dir, **changes))
    with pytest.raises(UserError) as caught:
        open_run_dir(new, resume=True, allow_changes=False)
    assert "\n  head.scale: 16.0 -> 8.0\n  optimizer.lr: 0.005 -> 0.5\n" in str(caught.value)
    assert "--allow-changes" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        open_run_dir(new, resume=True, allow_changes=True)
    assert "resuming with a changed configuration: optimizer.lr: 0.005 -> 0.5" in caplog.text


def test_a_run_directory_belongs_to_one_run_at_a_time(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("dist_train.train.run_dir.LOCK_WAIT_S", 0.1)
    run_dir = copy_of(finished, tmp_path)
    config = load_config(run_dir / "config.yaml", [f"run_dir={run_dir}"])
    lock = open_run_dir(config, resume=True, allow_changes=True)
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on \S+; wait for that run"):
        open_run_dir(config, resume=True, allow_changes=True)
    lock.close()
    open_run_dir(config, resume=True, allow_changes=True).close()


def test_with_another_batch_size_the_sample_order_goes_on_at_the_next_whole_batch(finished, tmp_path, tiny_set):
    run_dir = copy_of(finished, tmp_path)
    checkpoint = newest_sound_checkpoint(run_dir, ALONE)
    assert read_progress(checkpoint).position == 6 * 48
    changed = trainer(tmp_path, tiny_set, checkpoint, train__global_batch_size=64, train__micro_batch_size=32)
    assert next(iter(changed.loader)).positions[0] == 320
    changed.train_step(next(changed.loader))
    changed.save()
    changed.checkpointer.wait()
    progress = read_progress(committed_checkpoints(run_dir)[-1])
    assert (progress.step, progress.position) == (7, 384)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (
            {"steps": 4},
            r"is of step 6, past the last step of a run of 4 \(train\.steps\); give train\.steps=6 or more",
        ),
        (
            {"steps": None, "epochs": 5},
            r"is of step 6, past the last step of a run of 5 \(train\.epochs\); give train\.steps=6 or more",
        ),
        (
            {"steps": None, "epochs": 20, "global_batch_size": 16, "micro_batch_size": 16},
            # 20 epochs of 5 steps are 1600 samples, of which 288 are done.
            r"6 steps took 288 samples, not the 96 of .* 16, .* 20 .*; give train\.steps=88 and train\.epochs=null",
        ),
    ],
)
def test_a_checkpoint_from_which_a_run_has_no_right_end_is_refused_with_the_steps_that_would_do(
    finished, tmp_path, tiny_set, length, message
):
    checkpoint = newest_sound_checkpoint(copy_of(finished, tmp_path), ALONE)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, tiny_set, checkpoint, **{f"train__{key}": value for key, value in length.items()})
    same = trainer(tmp_path, tiny_set, checkpoint, train__steps=None, train__epochs=6)
    same.close()
    assert (same.step, same.total_steps) == (6, 6)


def test_a_second_signal_changes_nothing_about_the_polite_end(tmp_path, tiny_set, monkeypatch):
    made = trainer(tmp_path, tiny_set, train__steps=100)
    step = made.train_step

    def asked_twice(batch):
        if made.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    monkeypatch.setattr(made, "train_step", asked_twice)
    write = FileSystemWriter.write_data

    def again(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # while the checkpoint is being written
        return write(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", again)
    assert not made.fit()
    made.close()
    assert [path.name for path in committed_checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_checksums_that_cannot_be_written_cost_a_checkpoint_and_nobody_waits(tmp_path, tiny_set, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    made = trainer(tmp_path, tiny_set)
    monkeypatch.setattr(checkpoint_module, "write_checksums", full)
    made.save()
    made.checkpointer.wait()
    assert committed_checkpoints(tmp_path / "run") == []
    assert "CHECKPOINT NOT WRITTEN" in caplog.text


def test_evaluation_while_training_keeps_the_best_checkpoint_besides_the_newest(tmp_path, tiny_set, monkeypatch):
    made = trainer(
        tmp_path, tiny_set, train__steps=8, checkpoint__every_steps=2, checkpoint__keep=1, evaluate__every_steps=2
    )
    scores = iter([0.5, 0.9, 0.7, 0.6])
    monkeypatch.setattr("dist_train.train.loop.evaluate_backbone", lambda *_: Judged(next(scores)))
    assert made.fit()
    assert [path.name[-1] for path in committed_checkpoints(tmp_path / "run")] == ["4", "8"]
    assert read_best(tmp_path / "run") == (4, 0.9)
    found = {
        line["step"]: line["evaluate/score"] for line in read_metrics(tmp_path / "run") if "evaluate/score" in line
    }
    assert found == {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.6}


class Judged:
    def __init__(self, score):
        self.score = score

    def figures(self):
        return {"evaluate/score": self.score}


def test_a_resumed_run_has_the_weights_of_the_run_that_was_never_stopped(finished, tmp_path, tiny_set):
    run_dir = copy_of(finished, tmp_path)
    whole = trainer(tmp_path, tiny_set, run_dir / "checkpoints" / "step-00000006")
    resumed = trainer(tmp_path, tiny_set, run_dir / "checkpoints" / "step-00000002", train__steps=6)
    losses(resumed, 4)
    for name, tensor in whole.program.backbone.state_dict().items():
        assert torch.equal(resumed.program.backbone.state_dict()[name], tensor), name
    assert torch.equal(whole.program.head.class_centers(), resumed.program.head.class_centers())
