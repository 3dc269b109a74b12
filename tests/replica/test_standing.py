"""Parts that stand still, and rates by part, under every strategy: against plain torch in one process."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.backbones import BackboneConfig, build_backbone
from dist_train.config import RunConfig
from dist_train.errors import NonFiniteError, UserError
from dist_train.replica.groups import rate_shares
from dist_train.replica.still import StillReplica
from dist_train.start.freeze import NORMS
from dist_train.train.replicas import Replicas
from tests.backbones.toy import Toy
from tests.ranks import ranks_here, run_ranks

SIDE, WIDTH, STEPS, THAW, BATCH = 32, 8, 4, 2, 12
# What stands still in the first THAW steps, by optimizer, with its rates.
CASES = {
    "sgd": (("stem", "stages.2", "norms"), {"lr": 0.0005, "weight_decay": 0.1}),
    "adamw": (("stem", "stages.1"), {"lr": 0.001, "backbone_lr_scale": 0.5, "layer_decay": 0.7}),
}
STANDING = {
    "sgd": lambda name, norms: name.startswith(("stem.", "stages.1.")) or name.rpartition(".")[0] in norms,
    "adamw": lambda name, norms: name.startswith(("stem.", "stages.0.")),
}
DEPTHS = ("stem.", "stages.0.", "stages.1.", "stages.2.", "stages.3.", "embed.")  # of `nano`: a block a stage

# A norm takes these biases out again: their gradient is rounding alone, of which AdamW makes whole steps.
UNSEEN = ("residual.5.bias", "shortcut.1.bias", "embed.0.bias", "embed.3.bias")


def network():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="nano", embedding_dim=WIDTH), SIDE)
    return backbone.to(memory_format=torch.channels_last)  # as in a run


def pictures(step):
    """[BATCH, 3, SIDE, SIDE], and what their embeddings [BATCH, WIDTH] shall be."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=generator), torch.randn(BATCH, WIDTH, generator=generator)


def replicas_of(name, strategy, ranks, **start):
    freeze, rates = CASES[name]
    start = {"freeze": freeze, "freeze_steps": THAW} | start
    config = RunConfig(
        run_dir="run",
        data={"path": "set"},
        start=start,
        backbone={"name": "nano", "embedding_dim": WIDTH},
        train={"steps": STEPS, "strategy": strategy, "global_batch_size": BATCH, "device": "cpu"},
        optimizer={"name": name} | rates,
    )
    return Replicas(config, SIDE, 1, ranks), config.optimizer.lr


def advance(replica, lr, step):
    ranks = replica.ranks
    images, targets = (each.chunk(ranks.world_size)[ranks.rank] for each in pictures(step))
    replica.train()
    with replica.accumulate(last=True):
        embeddings = replica.embed(images)
        replica.backward(embeddings, 2 * (embeddings.detach() - targets) / BATCH)
    return replica.step(lr)


def as_numpy(state):
    return {name: value.detach().clone().numpy() for name, value in state.items()}


def learned_states(name, strategy, ranks):
    """The weights after each step, those of runs that go on from a stored state, and the optimizer's state."""
    replicas, lr = replicas_of(name, strategy, ranks)
    replica, states, stored = replicas.replicate(network(), 0), [], {}
    for step in range(STEPS):
        if step == THAW:
            replica = replicas.follow(replica, step)
        stored[step] = [copy.deepcopy(state) for state in (replica.backbone_state(), replica.optimizer_state())]
        advance(replica, lr, step)
        states.append(as_numpy(replica.backbone_state()))
    resumed = {}
    begins = (THAW - 1, THAW, THAW + 1) if strategy == "ddp" else (THAW - 1,)  # an engine takes a second of each rank
    for step in begins:  # built for that step at once, as a resumed run does
        other = replicas.replicate(network(), step)
        other.load_backbone(stored[step][0])
        other.load_optimizer(stored[step][1])
        resumed[step] = None
        for later in range(step, STEPS):
            if later == THAW > step:
                other = replicas.follow(other, later)
            advance(other, lr, later)
        resumed[step] = as_numpy(other.backbone_state())
        other.close()
    replica.close()
    kept = {key: as_numpy(value) for key, value in stored[THAW][1].items()}
    return states, resumed, kept


def a_still_backbone(strategy, ranks):
    """Its norm, its weights before and after a step, whether a gradient of NaN on the last rank is refused here."""
    replicas, lr = replicas_of("adamw", strategy, ranks, freeze=["backbone"])
    replica = replicas.replicate(network(), 0)
    assert isinstance(replica, StillReplica)
    before = as_numpy(replica.backbone_state())
    norm = float(advance(replica, lr, 0))
    embeddings = replica.embed(pictures(0)[0])
    assert not embeddings.requires_grad
    replica.backward(embeddings, torch.full_like(embeddings, torch.nan if ranks.rank == ranks.world_size - 1 else 0))
    refused = False
    try:
        replica.step(lr)
    except NonFiniteError:
        refused = True
        replica.discard()
    again = float(advance(replica, lr, 1))
    thawed = replicas.follow(replica, THAW)
    moving = float(advance(thawed, lr, THAW))
    return before, as_numpy(replica.backbone_state()), norm, refused, again, moving


def learn(rank, world_size, cases):
    ranks = ranks_here(rank, world_size)
    found = {(name, strategy): learned_states(name, strategy, ranks) for name, strategy in cases}
    return found, a_still_backbone(cases[-1][1], ranks)


@cache
def plain_states(name, shards):
    """The same by plain torch: every shard is normalised by itself, gradients add up."""
    backbone, (_, rates) = network(), CASES[name]
    norms = {place for place, module in backbone.named_modules() if isinstance(module, NORMS)}
    standing = {one for one, _ in backbone.named_parameters() if STANDING[name](one, norms)}
    modules = [module for place, module in backbone.named_modules() if STANDING[name](f"{place}.x", norms)]
    scale, decay = rates.get("backbone_lr_scale", 1), rates.get("layer_decay", 1)
    depth = {one: next(i for i, part in enumerate(DEPTHS) if one.startswith(part)) for one in backbone.state_dict()}
    groups = [
        {"params": [parameter], "lr": rates["lr"] * scale * decay ** (len(DEPTHS) - 1 - depth[one])}
        for one, parameter in backbone.named_parameters()
    ]
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, weight_decay=5e-4)
    else:
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1)
    states = []
    for step in range(STEPS):
        backbone.train()
        for one, parameter in backbone.named_parameters():
            parameter.requires_grad_(step >= THAW or one not in standing)
        for module in modules if step < THAW else ():
            module.eval()
        optimizer.zero_grad()
        for images, targets in zip(*(each.chunk(shards) for each in pictures(step)), strict=True):
            ((backbone(images) - targets).square().sum() / BATCH).backward()
        optimizer.step()
        states.append(as_numpy(backbone.state_dict()))
    return states, standing, norms


@pytest.fixture(scope="module")
def learned():
    """By number of ranks, what each rank found."""
    ddp = (("sgd", "ddp"), ("adamw", "ddp"))
    return {
        1: [learn(0, 1, ddp)],
        2: run_ranks(2, learn, (*ddp, ("sgd", "zero2"), ("adamw", "zero1")), timeout_s=400),
        3: run_ranks(3, learn, (*ddp, ("sgd", "zero3"), ("adamw", "zero3")), timeout_s=400),
    }


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_stands_still_does_to_the_last_bit_and_the_rest_learns_as_in_plain_torch(learned, name, world_size):
    expected, standing, norms = plain_states(name, world_size)
    first = as_numpy(network().state_dict())
    compared = [one for one, _ in network().named_parameters() if not one.endswith(UNSEEN)]
    for found, _ in learned[world_size]:
        for strategy in (strategy for case, strategy in found if case == name):
            states = found[name, strategy][0]
            for one in first:
                if STANDING[name](one, norms):
                    for state in states[:THAW]:
                        np.testing.assert_array_equal(state[one], first[one], err_msg=f"{strategy} {one}")
            for step in range(STEPS):
                for one in compared:
                    np.testing.assert_allclose(
                        states[step][one], expected[step][one], rtol=1e-4, atol=2e-5, err_msg=f"{strategy} {step} {one}"
                    )
    moved = [one for one in standing if not np.array_equal(expected[-1][one], first[one])]
    assert len(moved) == len(standing) > 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_that_goes_on_before_at_or_after_the_thaw_is_the_unbroken_one(learned, world_size):
    """To the last bit; but DDP adds up in another order in a replica's first step, which three addends show."""
    for found, _ in learned[world_size]:
        for (name, strategy), (states, resumed, _) in found.items():
            for step, state in resumed.items():
                for one, value in state.items():
                    said = f"{name} {strategy} from {step}: {one}"
                    if world_size < 3 or strategy != "ddp" or step == THAW:
                        np.testing.assert_array_equal(value, states[-1][one], err_msg=said)
                    elif not one.endswith(UNSEEN) and "running" not in one:
                        np.testing.assert_allclose(value, states[-1][one], rtol=1e-4, atol=2e-5, err_msg=said)


def test_the_stored_state_names_every_parameter_with_zeros_for_those_that_stood_still(learned):
    for world_size in (1, 2, 3):
        for (name, strategy), (_, _, kept) in learned[world_size][0][0].items():
            standing = plain_states(name, 1)[1]
            assert set(kept) == {one for one, _ in network().named_parameters()} | {"scalars"}
            for one, parameter in network().named_parameters():
                for value in kept[one].values():
                    assert value.shape == parameter.shape
                    assert (not value.any()) == (one in standing), f"{strategy} {one}"
            scalars = {"steps": THAW, "missed": THAW} if name == "adamw" else {"steps": 0}
            assert {
                key: float(kept["scalars"][key]) for key in kept["scalars"] if key in ("steps", "missed")
            } == scalars


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_backbone_that_stands_still_moves_nothing_and_refuses_a_gradient_that_is_not_finite(learned, world_size):
    for _, (before, after, norm, refused, again, moving) in learned[world_size]:
        assert (norm, again) == (0, 0)
        assert refused
        assert moving > 0
        assert all(np.array_equal(value, after[one]) for one, value in before.items())


def test_a_decay_of_rates_by_parts_needs_a_network_that_names_them():
    config = replicas_of("adamw", "ddp", ranks_here(0, 1))[0]._config.optimizer
    with pytest.raises(UserError, match=r"optimizer\.layer_decay 0\.7: Toy names no parts .* set it to 1"):
        rate_shares(config, Toy(32, 8, 0.0, 8, 1, 1.0))
    whole = config.model_copy(update={"layer_decay": 1.0})
    assert set(rate_shares(whole, nn.Linear(2, 2)).values()) == {0.5}
