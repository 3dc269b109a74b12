"""The backbone under DeepSpeed ZeRO learns what it learns under DDP, and goes on from its checkpoints."""

import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.errors import UserError
from dist_train.replica.build import build_replica
from dist_train.replica.deepspeed_internals import INTERNALS, VERSIONS, check_internals, import_deepspeed
from dist_train.replica.zero import check_options
from tests.launch.recipes import headcount_here
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.test_training import check_spoiled, ranks_of_test, spoil, train_steps, write_recipe

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
        if strategy != "zero3":
            options["train__ema_decay"] = 0.5
        recipe = write_recipe(folder / f"{name}.yaml", data, folder / strategy, **options)
        first = train_steps(rank, world_size, recipe, 3)
        checkpoint = committed_checkpoints(folder / strategy)[-1]
        found[strategy] = np.concatenate([first, train_steps(rank, world_size, recipe, 3, checkpoint)])
    for strategy in ("zero2", "zero3"):
        options = {"train__strategy": strategy, "train__max_bad_steps": 2}
        recipe = write_recipe(folder / f"bad-{name}.yaml", data, folder / f"bad-{strategy}", **options)
        found[f"bad {strategy}"] = spoil(rank, world_size, recipe)
    found["internals"] = {strategy: internals(rank, world_size, strategy) for strategy in STAGES}
    return found


def internals(rank, world_size, strategy):
    """The internal parts of DeepSpeed that an engine has, of those that are known by name."""
    train = TrainConfig(steps=1, strategy=strategy, global_batch_size=4, device="cpu")
    replica = build_replica(train, OptimizerConfig(), nn.Linear(3, 2), 1, ranks_of_test(rank, world_size))
    engine = replica._engine
    owners = {kind: engine if kind == "engine" else engine.optimizer for kind in INTERNALS}
    return {kind: tuple(name for name in INTERNALS[kind] if hasattr(owner, name)) for kind, owner in owners.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def learned(folder, tiny_set):
    return run_ranks(2, learn, folder, tiny_set, timeout_s=270)


@pytest.mark.parametrize("strategy", STAGES)
def test_a_zero_run_has_the_loss_curve_of_ddp_also_when_resumed(learned, strategy):
    for found in learned:
        np.testing.assert_allclose(found[strategy], found["ddp"], atol=1e-4)


@pytest.mark.usefixtures("learned")
def test_the_moving_average_under_zero_is_that_of_ddp(folder):
    def parameters(strategy, recipe):
        (folder / strategy / "config.yaml").write_text(recipe)
        return torch.cat([p.detach().flatten() for p in load_backbone(folder / strategy)[0].parameters()])

    averages = {s: parameters(s, (folder / f"{s}-0.yaml").read_text()) for s in ("ddp", "zero1", "zero2")}
    weights = parameters("ddp", (folder / "zero3-0.yaml").read_text())  # a recipe without an average
    lag = (averages["ddp"] - weights).abs().mean()
    for strategy in ("zero1", "zero2"):
        assert (averages[strategy] - averages["ddp"]).abs().mean() < 0.05 * lag, strategy


def test_every_internal_part_of_deepspeed_that_is_touched_is_there(learned):
    of_stage = {"zero1": "optimizer of stages 1 and 2", "zero2": "optimizer of stages 1 and 2"}
    for strategy, there in learned[0]["internals"].items():
        for kind in ("engine", of_stage.get(strategy, "optimizer of stage 3")):
            assert there[kind] == INTERNALS[kind], strategy


def test_an_engine_that_lacks_an_internal_part_is_refused_by_its_name():
    zero = SimpleNamespace(averaged_gradients={}, optimizer=None)
    with pytest.raises(
        UserError, match=r"zero3: this DeepSpeed .* lacks optimizer of stage 3: fp32_partitioned_groups"
    ):
        check_internals(SimpleNamespace(micro_steps=0, optimizer=zero), 3)


@pytest.mark.parametrize("version", ["0.19.7", "0.20.0", "1.0"])
def test_another_version_of_deepspeed_is_refused_with_the_range(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(UserError, match=rf"works with deepspeed>=0\.19\.8,<0\.20, found {version}; pip install"):
        import_deepspeed()


def test_a_missing_deepspeed_is_said_to_be_missing(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(UserError, match="found not installed; pip install"):
        import_deepspeed()


def test_the_package_asks_for_the_versions_whose_internals_are_known():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"deepspeed{VERSIONS}" in project["dependencies"]


@pytest.mark.parametrize(
    ("strategy", "options", "dtype", "message"),
    [
        ("zero3", {"ema_decay": 0.9}, torch.float32, "train.ema_decay needs whole weights on every rank; use zero2"),
        ("zero1", {}, torch.float16, "train.precision=float16 goes with train.strategy=ddp only"),
        ("zero2", {"compile": True}, torch.float32, "train.compile goes with train.strategy=ddp only"),
    ],
)
def test_what_only_ddp_has_is_refused(strategy, options, dtype, message):
    with pytest.raises(UserError, match=message):
        check_options(TrainConfig(steps=1, strategy=strategy, **options), dtype)
    check_options(TrainConfig(steps=1, strategy="zero2", ema_decay=0.9), torch.bfloat16)


def test_a_check_of_a_recipe_refuses_a_moving_average_under_zero3(tmp_path, tiny_set):
    options = {"train__strategy": "zero3", "train__ema_decay": 0.9}
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", **options)
    done = headcount_here("train", recipe, "--check")
    assert done.returncode == 2
    assert "train.ema_decay needs whole weights on every rank; use zero2, or set it to null" in done.stderr


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_bad_step_under_zero_leaves_no_trace(learned, strategy):
    check_spoiled([found[f"bad {strategy}"] for found in learned])


def test_a_zero_run_goes_on_under_ddp_on_another_number_of_ranks(tmp_path, tiny_set, learned):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__strategy="zero3")
    first = run_ranks(3, train_steps, recipe, 3)[0]
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "run")
    second = run_ranks(1, train_steps, recipe, 3, committed_checkpoints(tmp_path / "run")[-1])[0]
    np.testing.assert_allclose(np.concatenate([first, second]), learned[0]["ddp"], atol=1e-4)
