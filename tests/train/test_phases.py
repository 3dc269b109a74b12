"""Runs whose recipes have phases: what holds from which step on, and resumes before, at and after each."""

import numpy as np
import pytest
import torch

from dist_train.config import load_config
from dist_train.errors import UserError
from dist_train.train.build import open_training
from tests.launch.recipes import write_recipe
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.kill_loop import flat
from tests.train.test_training import ranks_of_test

STEPS, SECOND, THIRD = 6, 2, 4
PHASES = [
    {
        "at": SECOND,
        "head": {"sample_rate": 1.0, "margin": "arcface", "scale": 8.0},
        "data": {"augment": {"rotation": 20.0}, "image_size": 48},
        "start": {"freeze": []},
    },
    {
        "at": THIRD,
        "head": {"margin": "adaface", "scale": 16.0},
        "optimizer": {"lr": 2e-4, "warmup_steps": 2, "schedule": "constant"},
        "start": {"freeze": ["stem"]},
    },
]
OPTIONS = {
    "train__steps": STEPS,
    "head__sample_rate": 0.5,
    "head__margin": "adaface",
    "optimizer__name": "adamw",
    "optimizer__lr": 1e-4,
    "head__init_std": 0.25,
    "start__freeze": ["stem"],
    "checkpoint__keep": STEPS,
    "train__global_batch_size": 24,
    "train__micro_batch_size": 4,
    "backbone__name": "nano",
    "data__image_size": 40,  # at which it has the same parameters as at 48
}


def phased_recipe(path, data, run_dir, **options):
    write_recipe(path, data, run_dir, **OPTIONS | options)
    return path, [f"phases={PHASES}"]


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def state_of(loop):
    """Every tensor of the program's parts, by name; of the head this rank's rows."""
    found = {}
    for name, part in loop.program.parts.items():
        for key, value in flat_state(part.state_dict()):
            found[f"{name}.{key}"] = (value.to_local() if hasattr(value, "to_local") else value).detach().clone()
    return found


def flat_state(tree):
    return [(key, value) for key, value in flat(tree) if isinstance(value, torch.Tensor)]


def rest_of(loop, save=False):
    """Losses of all steps that are left; the state at the end."""
    losses = []
    while loop.step < loop.total_steps:
        losses.append(float(loop.train_step(loop.next_batch())))
        if save and loop.step < loop.total_steps:
            loop.save()
            loop.checkpointer.wait()
            loop.ranks.barrier()  # until rank 0 has committed
        else:
            loop.program.replica.average_buffers()  # as a checkpoint does
    return np.array(losses), state_of(loop)


def open_loop(ranks, recipe, run_dir, checkpoint=None):
    path, phases = recipe
    config = load_config(path, [*phases, f"run_dir={run_dir}"])
    config.run_dir.mkdir(exist_ok=True)
    return open_training(config, ranks, checkpoint)


def whole_and_resumed(rank, world_size, recipe, folder, steps):
    """Losses of the whole run; by step of `steps`, what differs at the end of a run that goes on from there."""
    ranks, differing = ranks_of_test(rank, world_size), {}
    loop = open_loop(ranks, recipe, folder / "run")
    losses, whole = rest_of(loop, save=True)
    loop.close()
    for step in steps:
        loop = open_loop(ranks, recipe, folder / f"from-{step}", folder / "run" / "checkpoints" / f"step-{step:08d}")
        again, state = rest_of(loop)
        loop.close()
        names = [name for name in whole.keys() | state.keys() if not torch.equal(whole[name], state[name])]
        differing[step] = names + ["losses"] * (not np.array_equal(again, losses[step:]))
    return losses, differing


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory, tiny_set):
    folder = tmp_path_factory.mktemp("two")
    recipe = phased_recipe(folder / "recipe.yaml", tiny_set, folder / "run")
    return folder, recipe, run_ranks(2, whole_and_resumed, recipe, folder, (SECOND, THIRD - 1))


def test_a_run_resumed_before_at_and_after_each_phase_is_the_unbroken_one_on_one_rank(tmp_path, tiny_set):
    recipe = phased_recipe(tmp_path / "recipe.yaml", tiny_set, tmp_path / "run")
    steps = range(SECOND - 1, THIRD + 2)
    _, differing = whole_and_resumed(0, 1, recipe, tmp_path, steps)
    assert differing == {step: [] for step in steps}


def test_a_run_resumed_before_and_at_a_phase_is_the_unbroken_one_on_two_ranks(on_two_ranks):
    for _, differing in on_two_ranks[2]:
        assert differing == {SECOND: [], THIRD - 1: []}


def resumed(rank, world_size, recipe, run_dir, checkpoint):
    loop = open_loop(ranks_of_test(rank, world_size), recipe, run_dir, checkpoint)
    losses, _ = rest_of(loop)
    loop.close()
    return losses


@pytest.mark.parametrize(("world_size", "step"), [(3, SECOND), (1, THIRD)])
def test_another_number_of_ranks_goes_on_with_the_phases(on_two_ranks, tmp_path, world_size, step):
    folder, recipe, ((losses, _), _) = on_two_ranks
    checkpoint = folder / "run" / "checkpoints" / f"step-{step:08d}"
    for again in run_ranks(world_size, resumed, recipe, tmp_path / "run", checkpoint):
        # Two steps: adaface's averages move with every forward pass, of which ranks that are more make fewer.
        np.testing.assert_allclose(again[:2], losses[step : step + 2], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("phase", "length", "message"),
    [
        ({"at": 2, "data": {"image_size": 64}}, {"steps": 4}, r"phases.0.data.image_size 64: .* has other parameters"),
        ({"at": 2, "data": {"image_size": 16}}, {"steps": 4}, "image_size 16 px is too small"),
        ({"at": 2, "start": {"freeze": ["stages.9"]}}, {"steps": 4}, "has no part stages.9"),
        (
            {"at": 9, "head": {"scale": 3.0}},
            {"epochs": 1},
            "phases.0.at 9: such a step never comes in a run of 3 steps",
        ),
    ],
)
def test_a_phase_that_network_or_set_do_not_admit_is_refused_before_the_first_step(
    tiny_set, tmp_path, phase, length, message
):
    path, _ = phased_recipe(tmp_path / "recipe.yaml", tiny_set, tmp_path / "run", data__image_size=None)
    changes = [f"phases=[{phase}]", "train.steps=null", *(f"train.{key}={value}" for key, value in length.items())]
    config = load_config(path, [*changes, "optimizer.name=sgd"])
    config.run_dir.mkdir()
    with pytest.raises(UserError, match=message):
        open_training(config, ranks_of_test(0, 1))
