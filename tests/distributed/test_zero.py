"""The backbone under DeepSpeed ZeRO learns what it learns under DDP, and goes on from its checkpoints."""

import numpy as np
import pytest

from dist_train.checkpoint import committed_checkpoints
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.test_training import train_steps, write_recipe


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


@pytest.fixture(scope="module")
def ddp_curve(tmp_path_factory, tiny_set):
    path = tmp_path_factory.mktemp("ddp")
    return run_ranks(2, train_steps, write_recipe(path / "a.yaml", tiny_set, path / "run"), 6)[0]


def test_a_zero_run_goes_on_under_ddp_on_another_number_of_ranks(tmp_path, tiny_set, ddp_curve):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__strategy="zero3")
    first = run_ranks(3, train_steps, recipe, 3)[0]
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "run")
    second = run_ranks(2, train_steps, recipe, 3, committed_checkpoints(tmp_path / "run")[-1])[0]
    np.testing.assert_allclose(np.concatenate([first, second]), ddp_curve, atol=1e-4)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_zero_run_has_the_loss_curve_of_ddp_also_when_resumed(tmp_path, tiny_set, ddp_curve, strategy):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__strategy=strategy)
    first = run_ranks(2, train_steps, recipe, 3)[0]
    found = committed_checkpoints(tmp_path / "run")
    second = run_ranks(2, train_steps, recipe, 3, found[-1])[0]
    np.testing.assert_allclose(np.concatenate([first, second]), ddp_curve, atol=1e-4)
