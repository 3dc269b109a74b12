"""Recipes with `start.freeze`: whole programs whose parts stand still, for all steps or the first ones."""

import itertools
import logging

import pytest
import torch
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.conventions import lies_in, part_places
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.errors import UserError
from dist_train.start.config import StartConfig
from dist_train.start.freeze import Freezing
from tests.sets import write_set
from tests.single import losses, trainer

THAW, STEPS = 2, 4
OPTIONS = {
    "backbone__name": "nano",
    "start__freeze_steps": THAW,
    "train__ema_decay": 0.5,
    "train__activation_checkpointing": True,
    "optimizer__name": "adamw",
    "optimizer__lr": 0.001,
    "backbone__dropout": 0.1,
    "head__margin": "adaface",
    "head__sample_rate": 0.5,
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def state_of(loop):
    """Every tensor of the program's parts, by `part.name`."""
    found = {}
    for part, state in ((name, part.state_dict()) for name, part in loop.program.parts.items()):
        for name, value in state.items():
            values = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{part}.{name}.{key}".rstrip("."): each.detach().clone() for key, each in values}
    return found


def same(first, second, names):
    return all(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.job  # seconds each
@pytest.mark.parametrize("freeze", [("stem", "stages.2", "norms", "head"), ("backbone",)])
def test_parts_stand_still_until_the_thaw_and_a_resumed_run_is_the_unbroken_one(tmp_path, tiny_set, freeze, caplog):
    options = OPTIONS | {"start__freeze": list(freeze), "checkpoint__keep": STEPS}
    caplog.set_level(logging.INFO)
    whole = trainer(tmp_path, tiny_set, **options)
    states, batches = [state_of(whole)], []
    for step in range(STEPS):
        batch = next(whole.loader)
        batches.append(batch.images.clone())
        if step == 1:
            batch.images[30] = torch.nan  # in the second micro-batch: the step is refused
        whole.train_step(batch)
        states.append(state_of(whole))
        if step < STEPS - 1:
            whole.save()
            whole.checkpointer.wait()
    assert whole.bad_steps.count == 1
    still = still_names(whole, freeze)
    assert same(states[0], states[THAW], still)
    assert same(states[1], states[2], set(states[1]) - {"head.choices"})  # the refused step
    trained = {name for name in states[0] if name.startswith(("backbone.", "head.centers")) and name not in still}
    assert not any(torch.equal(states[0][name], states[1][name]) for name in trained if "num_batches" not in name)
    assert not any(torch.equal(states[THAW][name], states[-1][name]) for name in still if moves(name))
    # A part that stands still is its own average.
    for name in (name for name in still if name.startswith("backbone.")):
        assert torch.equal(states[THAW][name], states[THAW][name.replace("backbone.", "average.module.")])
    assert f"start.freeze: {', '.join(freeze)} stand still for the first {THAW} steps; " in caplog.text
    assert "start.freeze: all parts train from now on; " in caplog.text

    for checkpoint in committed_checkpoints(tmp_path / "run"):
        resumed = trainer(tmp_path, tiny_set, checkpoint, **options)
        for step in range(resumed.step, STEPS):
            batch = next(resumed.loader)
            assert torch.equal(batch.images, batches[step])
            if step == 1:
                batch.images[30] = torch.nan
            resumed.train_step(batch)
        assert same(states[-1], state_of(resumed), states[-1]), checkpoint.name


def test_parts_of_a_run_that_is_under_way_can_be_let_stand_still(tmp_path, tiny_set):
    adamw = {"optimizer__name": "adamw"}
    first = trainer(tmp_path, tiny_set, **adamw)
    losses(first, 2)
    first.save()
    first.checkpointer.wait()
    first.close()
    resumed = trainer(tmp_path, tiny_set, committed_checkpoints(tmp_path / "run")[-1], **adamw, start__freeze=["stem"])
    assert int(resumed.program.replica.optimizer_state()["scalars"]["steps"]) == 2
    before = {name: value.clone() for name, value in resumed.program.backbone.state_dict().items()}
    losses(resumed, 2)
    moved = {
        name for name, value in resumed.program.backbone.state_dict().items() if not torch.equal(value, before[name])
    }
    resumed.close()
    assert moved
    assert not {name for name in moved if name.startswith("stem")}


def still_names(loop, freeze):
    """Names of the tensors in `state_of` that stand still."""
    backbone = loop.program.backbone
    if "backbone" in freeze:
        return {f"backbone.{name}" for name in backbone.state_dict()}
    norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    places = ["stem", "stages.1", *norms]
    names = {f"backbone.{name}" for name in backbone.state_dict() if lies_in(name, places)}
    return names | {
        "head.centers",
        "head.momentum",
        "head.steps",
        "head.margin.norm_mean",
        "head.margin.norm_deviation",
    }


def moves(name):
    """Whether a tensor that is trained must change within two steps, as far as chance can tell."""
    return "num_batches" not in name


@pytest.mark.parametrize("option", [{"start__freeze": ["backbone"]}, {"start__freeze": ["head"]}])
def test_what_stands_still_for_all_steps_does_while_the_rest_learns(tmp_path, tiny_set, option):
    loop = trainer(tmp_path, tiny_set, **option)
    before = state_of(loop)
    found = losses(loop, 3)
    after = state_of(loop)
    part, other = ("backbone.", "head.centers") if "backbone" in option["start__freeze"] else ("head.", "backbone.")
    held = {name for name in before if name.startswith(part)} - {"head.choices"}
    assert same(before, after, held)
    assert not same(before, after, {name for name in before if name.startswith(other)})
    assert found[-1] != found[0]
    assert (float(loop.gradient_norm) == 0) == (part == "backbone.")


def test_a_part_that_the_network_lacks_is_refused_with_the_known_ones(tmp_path, tiny_set):
    with pytest.raises(
        UserError,
        match=r"start\.freeze: IResNet has no part stages\.9; known: backbone, stem, stages\.1, stages\.2, stages\.3, "
        r"stages\.4, norms, head",
    ):
        trainer(tmp_path, tiny_set, start__freeze=["stages.9"])
    with pytest.raises(UserError, match=r"Linear has no part stem; known: backbone, norms, head"):
        Freezing(("stem",), 5).hold(nn.Linear(2, 2), 7)  # also once it is over, as before


@pytest.mark.parametrize("steps", [None, 5])
def test_backbone_and_head_together_are_refused_since_nothing_is_left_to_train(steps):
    with pytest.raises(ValueError, match="backbone and head together leave nothing to train"):
        StartConfig(freeze=("head", "backbone"), freeze_steps=steps)


@pytest.mark.parametrize("name", ["iresnet50", "mobilefacenet", "nano"])
def test_every_network_of_convolutions_names_its_parts_by_its_halvings(name):
    with torch.device("meta"):
        network = build_backbone(BackboneConfig(name=name, embedding_dim=8), 64)
    parts = part_places(network)
    stages = [f"stages.{number}" for number in range(1, len(parts) - 1)]
    assert list(parts) == ["stem", *stages, "embed"]
    sides = {}
    modules = dict(network.named_modules())
    for part in stages:

        def note(_module, _inputs, output, part=part):
            sides[part] = output.shape[-1]

        for place in parts[part]:
            modules[place].register_forward_hook(note)
    network.eval()(torch.empty(2, 3, 64, 64, device="meta"))
    found = list(sides.values())
    assert len(found) == len(stages)
    assert all(2 * after == before for before, after in itertools.pairwise(found))


class Named(nn.Module):
    """A norm of another library, and a module that only has the word in its name."""

    def __init__(self):
        super().__init__()
        self.norm = type("RmsNormFast", (nn.Linear,), {})(4, 4)
        self.block = type("PreNorm", (nn.Sequential,), {})(nn.LayerNorm(4), nn.Linear(4, 4))


def test_norms_are_torchs_and_leaves_that_are_called_so():
    network = Named()
    Freezing(("norms",)).hold(network, 0)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"block.1.weight", "block.1.bias"}
