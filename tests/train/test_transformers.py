"""Runs of a vision transformer that leaves out branches and patches: on any ranks, resumed, under every strategy."""

import numpy as np
import pytest
import torch

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.errors import WorkError
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.single import losses, trainer
from tests.train.test_training import train_steps, write_recipe

OPTIONS = {
    "backbone__name": "vit_nano",
    "backbone__drop_path": 0.3,
    "backbone__patch_drop": 0.25,
    "optimizer__name": "adamw",
    "optimizer__lr": 0.0001,
    "optimizer__weight_decay": 0.1,
    "optimizer__decay_norms": False,
}
STAGES = ("zero1", "zero2", "zero3")
STEPS = 3
# With `trainer`, whose recipe has other defaults than `write_recipe`.
ALONE = OPTIONS | {"train__micro_batch_size": 8, "train__steps": 8, "head__init_std": 0.25}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def learn(rank, world_size, folder, data, strategies):
    """Losses of three steps by strategy; whatever else a run keeps or computes twice changes none."""
    found = {}
    for strategy in strategies:
        more = {"train__activation_checkpointing": True} if strategy == "zero3" else {"train__ema_decay": 0.5}
        options = OPTIONS | more | {"train__strategy": strategy}
        name = f"{strategy}-{world_size}"
        recipe = write_recipe(folder / f"{name}-{rank}.yaml", data, folder / name, **options)
        found[strategy] = train_steps(rank, world_size, recipe, STEPS)
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_set):
    """Of two ranks, and of three."""
    folder = tmp_path_factory.mktemp("learned")
    strategies = {2: ("ddp", *STAGES), 3: ("ddp",)}
    return {count: run_ranks(count, learn, folder, tiny_set, which) for count, which in strategies.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_set):
    """Losses of one rank, and the run's folder."""
    folder = tmp_path_factory.mktemp("alone")
    made = trainer(folder, tiny_set, train__ema_decay=0.5, **ALONE)
    found = losses(made, STEPS)
    save(made)
    return found, folder / "run"


def save(made):
    made.save()
    made.checkpointer.wait()


def test_the_loss_curve_is_the_same_on_one_rank_and_on_several(learned, alone):
    for found in (*learned[2], *learned[3]):
        np.testing.assert_allclose(found["ddp"], alone[0], atol=1e-4, rtol=0)
    assert alone[0][-1] < alone[0][0]


@pytest.mark.parametrize("strategy", STAGES)
def test_every_stage_of_zero_has_the_loss_curve(learned, alone, strategy):
    for found in learned[2]:
        np.testing.assert_allclose(found[strategy], alone[0], atol=1e-4, rtol=0)


def test_a_run_that_is_resumed_is_the_whole_run_bit_for_bit_and_so_is_one_that_computes_blocks_again(
    tmp_path, tiny_set, alone
):
    options = ALONE | {"train__ema_decay": 0.5, "train__activation_checkpointing": True}
    first = trainer(tmp_path, tiny_set, **options)
    found = losses(first, 1)
    save(first)
    second = trainer(tmp_path, tiny_set, committed_checkpoints(tmp_path / "run")[-1], **options)
    assert found + losses(second, STEPS - 1) == alone[0]
    save(second)
    ends = [load_backbone(run)[0].state_dict() for run in (tmp_path / "run", alone[1])]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_what_is_left_out_is_another_in_each_micro_batch_and_step(tmp_path, tiny_set):
    made, drawn = trainer(tmp_path, tiny_set, **OPTIONS), []
    network = made.program.backbone
    network.register_forward_pre_hook(lambda *_: drawn.append(network._patches.clone()))
    losses(made, 2)
    assert len(drawn) == 4
    assert all(not torch.equal(one, two) for n, one in enumerate(drawn) for two in drawn[:n])


def test_a_run_that_cannot_go_on_names_the_layer_of_a_transformer_too(tmp_path, tiny_set):
    made = trainer(tmp_path, tiny_set, train__max_bad_steps=1, **OPTIONS)
    made.program.backbone.blocks[1].mlp.fc2.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(WorkError, match=r"rank 0: weight blocks\.1\.mlp\.fc2\.bias is the first, from the end"):
        losses(made, 1)
