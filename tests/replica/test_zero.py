"""The backbone under DeepSpeed ZeRO learns what it learns under DDP, and goes on from its checkpoints."""

import numpy as np
import pytest

from dist_train.checkpoint.store import committed_checkpoints
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.test_training import check_spoiled, spoil, train_steps, write_recipe

STAGES = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def learn(rank, world_size, folder, data):
    """In the same processes, since starting them takes longest: losses by strategy, and what bad steps did."""
    found = {}
    for strategy in ("ddp", *STAGES):
        name = f"{strategy}-{rank}"
        # That inner activations are computed again changes nothing either.
        options = {"train__strategy": strategy, "train__activation_checkpointing": strategy in ("zero2", "zero3")}
        recipe = write_recipe(folder / f"{name}.yaml", data, folder / strategy, **options)
        first = train_steps(rank, world_size, recipe, 3)
        checkpoint = committed_checkpoints(folder / strategy)[-1]
        found[strategy] = np.concatenate([first, train_steps(rank, world_size, recipe, 3, checkpoint)])
    for strategy in ("zero2", "zero3"):
        options = {"train__strategy": strategy, "train__max_bad_steps": 2}
        recipe = write_recipe(folder / f"bad-{name}.yaml", data, folder / f"bad-{strategy}", **options)
        found[f"bad {strategy}"] = spoil(rank, world_size, recipe)
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_set):
    return run_ranks(2, learn, tmp_path_factory.mktemp("zero"), tiny_set)


@pytest.mark.parametrize("strategy", STAGES)
def test_a_zero_run_has_the_loss_curve_of_ddp_also_when_resumed(learned, strategy):
    for found in learned:
        np.testing.assert_allclose(found[strategy], found["ddp"], atol=1e-4)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_bad_step_under_zero_leaves_no_trace(learned, strategy):
    check_spoiled([found[f"bad {strategy}"] for found in learned])


def test_a_zero_run_goes_on_under_ddp_on_another_number_of_ranks(tmp_path, tiny_set, learned):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__strategy="zero3")
    first = run_ranks(3, train_steps, recipe, 3)[0]
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "run")
    second = run_ranks(1, train_steps, recipe, 3, committed_checkpoints(tmp_path / "run")[-1])[0]
    np.testing.assert_allclose(np.concatenate([first, second]), learned[0]["ddp"], atol=1e-4)
