"""Checkpoints that cannot be written or read, and the commands that look into them."""

import errno
import logging
import os
import shutil
import threading

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from typer.testing import CliRunner

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.errors import UserError, WorkError
from dist_train.track.trackers import read_metrics
from launch.cli import app
from tests.sets import write_set
from tests.single import trainer
from tests.weights.runs import write_names


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def train(tmp_path, tiny_set, **overrides):
    """A finished run of one rank with checkpoints at steps 2, 4 and 6."""
    options = {
        "backbone__name": "nano",
        "train__steps": 6,
        "checkpoint__every_steps": 2,
        "checkpoint__keep": 3,
    } | overrides
    made = trainer(tmp_path, tiny_set, **options)
    assert made.fit()
    made.close()
    return made.config.run_dir


def run(*arguments):
    result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_disk_that_is_full_during_a_save_costs_that_checkpoint_and_not_the_run(
    tmp_path, tiny_set, monkeypatch, caplog
):
    write, calls = FileSystemWriter.write_data, []

    def full(self, *arguments):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    with caplog.at_level(logging.ERROR):
        run_dir = train(tmp_path, tiny_set)
    assert [path.name[-1] for path in committed_checkpoints(run_dir)] == ["2", "6"]
    assert "CHECKPOINT NOT WRITTEN" in caplog.text
    assert "No space left on device" in caplog.text
    assert max(line["step"] for line in read_metrics(run_dir)) == 6
    assert not list((run_dir / "checkpoints").glob(".writing*")), "nothing half-written"


def test_old_checkpoints_are_removed_while_training_goes_on(tmp_path, tiny_set, monkeypatch):
    remove, threads = shutil.rmtree, []

    def noted(path, **options):
        if ".removing-" in str(path):
            threads.append(threading.current_thread().name)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", noted)
    run_dir = train(tmp_path, tiny_set, checkpoint__keep=1)
    assert [path.name[-1] for path in committed_checkpoints(run_dir)] == ["6"]
    for thread in threading.enumerate():
        if thread.name == "checkpoint-removal_0":
            thread.join(10)
    assert threads == ["checkpoint-removal_0"] * 2
    assert os.listdir(run_dir / "checkpoints") == ["step-00000006"]


def test_inspect_tells_what_checkpoints_hold(tmp_path, tiny_set):
    told = run("inspect", train(tmp_path, tiny_set))
    assert told.count(": sound") == 3
    assert "step 6" in told
    assert "head.centers [" in told
    assert "written by 1 ranks" in told


def test_a_cut_file_is_named_by_inspect_and_an_error_for_all_who_read_it(tmp_path, tiny_set):
    run_dir = train(tmp_path, tiny_set)
    newest = committed_checkpoints(run_dir)[-1]
    file = next(newest.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WorkError, match=rf"{newest.name}: {file.name} has 1000 bytes, expected"):
        run("inspect", run_dir)
    with pytest.raises(WorkError, match=rf"checkpoint .*{newest.name}: cannot be loaded"):
        load_backbone(run_dir)
    with pytest.raises(WorkError, match="cannot be loaded"):
        run("export", run_dir, "-o", tmp_path / "weights.pt")
    assert not (tmp_path / "weights.pt").exists()


def test_weights_of_another_architecture_than_the_configuration_names_are_refused(tmp_path, tiny_set):
    run_dir = train(tmp_path, tiny_set)
    config = run_dir / "config.yaml"
    whole = yaml.safe_load(config.read_text())
    name, dim = whole["backbone"]["name"], whole["backbone"].get("embedding_dim", 512)
    for change, found in (
        ({"name": "mobilefacenet"}, r"backbone.name=mobilefacenet .* is not in it"),
        ({"embedding_dim": 2 * dim}, rf"backbone.name={name} .* is \[{dim}, \d+\], expected \[{2 * dim}, \d+\]"),
    ):
        config.write_text(yaml.safe_dump({**whole, "backbone": {**whole["backbone"], **change}}))
        with pytest.raises(UserError, match=rf"holds another architecture than config.yaml .*{found}"):
            load_backbone(run_dir)


def test_exported_weights_load_in_plain_torch_and_are_the_runs(tmp_path, tiny_set):
    run_dir = train(tmp_path, tiny_set)
    backbone, config, progress = load_backbone(run_dir)
    write_names(run_dir / "identities.parquet", [str(n) for n in range(progress.num_classes)])
    told = run("export", run_dir, "-o", tmp_path / "weights.pt", "--centers")
    assert "step 6" in told
    assert progress.step == 6
    centers = load_file(tmp_path / "weights.centers.safetensors")["centers"]
    assert centers.shape == (progress.num_classes, config.backbone.embedding_dim)
    body = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(body) == set(backbone.state_dict())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(body[name], tensor)


def test_a_place_without_checkpoints_is_a_users_mistake(tmp_path, tiny_set):
    with pytest.raises(UserError, match="no checkpoint; give a run directory"):
        run("inspect", tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        run("export", tmp_path, "-o", "weights.pt")
