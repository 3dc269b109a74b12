"""A run directory of version 0.1.0, made before checkpoints had named parts, still loads and goes on.

`old_run.tar.xz` holds the run (config.yaml, metrics.jsonl and the checkpoint of step 4 of 8, by two ranks) and its set
of 7 identities: backbone `nano`, two centers a class, `curricularface`, a moving average.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.checkpoint.load import load_backbone, newest_sound_checkpoint
from dist_train.checkpoint.metadata import read_tensors
from dist_train.config import load_config
from dist_train.track.trackers import read_metrics
from dist_train.train.build import open_training
from tests.ranks import ranks_here, run_ranks

ARCHIVE = Path(__file__).with_name("old_run.tar.xz")


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)  # without a filter, which Python 3.11.2 does not know
    return tmp_path


def go_on(rank, world_size, folder, *overrides):
    """Losses of the steps that are left."""
    places = [f"run_dir={folder / 'run'}", f"data.path={folder / 'set'}"]
    config = load_config(folder / "run" / "config.yaml", [*places, *overrides])
    ranks = ranks_here(rank, world_size)
    loop = open_training(config, ranks, newest_sound_checkpoint(config.run_dir, ranks))
    assert (loop.step, loop.position) == (4, 16)
    losses = [float(loop.train_step(next(loop.loader))) for _ in range(loop.step, loop.total_steps)]
    loop.close()
    return losses


def test_an_old_run_goes_on_with_its_losses_on_two_ranks(old_run):
    stored = [line["loss"] for line in read_metrics(old_run / "run") if line["step"] > 4]
    for losses in run_ranks(2, go_on, old_run):
        np.testing.assert_allclose(losses, stored, rtol=1e-3)


def test_an_old_run_of_two_ranks_goes_on_on_one(old_run):
    stored = [line["loss"] for line in read_metrics(old_run / "run") if line["step"] > 4]
    # BatchNorm sees two pictures at a time, as on each of the two ranks. So does the margin's moving average, which saw
    # four, so that only the first loss is the same.
    losses = go_on(0, 1, old_run, "train.micro_batch_size=2")
    np.testing.assert_allclose(losses[0], stored[0], rtol=1e-3)
    np.testing.assert_allclose(losses, stored, rtol=1e-2)


def test_the_backbone_of_an_old_run_is_its_moving_average(old_run):
    backbone, config, progress = load_backbone(old_run / "run")
    assert (config.backbone.name, progress.step, progress.num_classes) == ("nano", 4, 7)
    with torch.no_grad():
        assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    stored = read_tensors(old_run / "run" / "checkpoints" / "step-00000004")
    assert {name.partition(".")[0] for name in stored} == {"backbone", "optimizer", "average", "head"}
