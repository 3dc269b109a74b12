"""A backbone is a file and a row: recipes, training, checkpoints and the planner follow."""

import json
import pkgutil
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

from dist_train.backbones import BackboneConfig, build_backbone, memory_format
from dist_train.backbones.registry import BACKBONES
from dist_train.checkpoint.load import load_backbone
from dist_train.config import OptimizerConfig, dump_config, load_config
from dist_train.errors import UserError
from dist_train.replica.groups import build_backbone_optimizer
from launch.plan_hardware import backbone_cost
from tests.backbones.toy import ROW, WIDTH, Attention, ToyConfig
from tests.launch.recipes import headcount_here, write_recipe
from tests.sets import write_set
from tests.single import losses, trainer


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ROW)


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


@pytest.mark.parametrize("name", BACKBONES)
def test_every_row_names_a_network_and_a_section_that_are_there(name):
    spec = BACKBONES[name]
    assert issubclass(pkgutil.resolve_name(spec.network), nn.Module)
    assert issubclass(pkgutil.resolve_name(spec.section), BackboneConfig)
    assert spec.larger is None or BACKBONES[spec.larger].max_image_size is None


def test_no_two_networks_have_a_short_name_in_common():
    names = [spec.short_name for spec in BACKBONES.values() if spec.short_name]
    assert len({*names, *BACKBONES}) == len(names) + len(BACKBONES)


def test_recipes_are_read_without_torch(tmp_path):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    code = (
        "import sys, pathlib; from dist_train.config import load_config\n"
        "print(load_config(pathlib.Path(sys.argv[1])).backbone.name, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "tiny False\n"


def test_an_unknown_network_is_refused_with_the_known_ones(tmp_path):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    with pytest.raises(UserError, match=r"backbone\.name: input should be 'iresnet18', .* or 'nano'; found 'resnet'"):
        load_config(recipe, ["backbone.name=resnet"])
    with pytest.raises(UserError, match=r"backbone\.name: input should be a valid string; found 18"):
        load_config(recipe, ["backbone.name=18"])


def test_a_networks_own_keys_are_known_in_its_recipes_alone(tmp_path, toy):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    config = load_config(recipe, ["backbone.name=toy", "backbone.depth=3"])
    assert config.backbone == ToyConfig(name="toy", embedding_dim=16, depth=3)
    # The resolved recipe beside a run holds them, and is read as it was written.
    assert yaml.safe_load(dump_config(config))["backbone"]["depth"] == 3
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "b.yaml") == config
    with pytest.raises(UserError, match=r"backbone\.depht: unknown key; did you mean backbone\.depth\?"):
        load_config(recipe, ["backbone.name=toy", "backbone.depht=3"])
    with pytest.raises(UserError, match=r"backbone\.depth: input should be greater than or equal to 1; found 0"):
        load_config(recipe, ["backbone.name=toy", "backbone.depth=0"])
    with pytest.raises(UserError, match=r"backbone\.depth: unknown key; did you mean backbone\.dropout"):
        load_config(recipe, ["backbone.depth=3"])


def test_the_row_fixes_arguments_and_sizes(toy):
    network = build_backbone(ToyConfig(name="toy", embedding_dim=24, depth=2), 32)
    assert (network.gain, len(network.blocks)) == (2.0, 2)
    assert network(torch.randn(3, 3, 32, 32)).shape == (3, 24)
    with pytest.raises(UserError, match=r"image_size 72 px is too large for backbone\.name=toy; use <= 64$"):
        build_backbone(ToyConfig(name="toy"), 72)
    with pytest.raises(UserError, match=r"image_size 8 px is too small for backbone\.name=toy; use >= 16"):
        build_backbone(ToyConfig(name="toy"), 8)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_what_a_network_or_its_part_wants_spared_is_never_decayed(toy, monkeypatch, name, decay_norms):
    network = build_backbone(ToyConfig(name="toy", embedding_dim=8), 32)
    monkeypatch.setattr(Attention, "no_weight_decay", lambda _: {"output.weight"}, raising=False)
    config = OptimizerConfig(name=name, weight_decay=0.1, decay_norms=decay_norms)
    optimizer = build_backbone_optimizer(config, network)
    names = {parameter: name for name, parameter in network.named_parameters()}
    grouped = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    spared = {names[p] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    asked = {"positions", "blocks.0.output.weight"}
    assert spared == asked | (set() if decay_norms else {name for p, name in names.items() if p.ndim == 1})


def test_networks_of_convolutions_have_the_two_groups_that_checkpoints_know():
    network = build_backbone(BackboneConfig(name="tiny", embedding_dim=8), 32)
    groups = build_backbone_optimizer(OptimizerConfig(decay_norms=False), network).param_groups
    assert [all(p.ndim > 1 for p in group["params"]) for group in groups] == [True, False]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]


def test_the_planner_counts_products_between_activations(toy):
    cost = backbone_cost(ToyConfig(name="toy", embedding_dim=24, patch_px=4, depth=3), 32)
    tokens = 8 * 8
    patches, attention = tokens * 3 * 4 * 4 * WIDTH, tokens * 4 * WIDTH**2 + 2 * tokens**2 * WIDTH
    assert cost.macs == patches + 3 * attention + WIDTH * 24
    done = headcount_here("launch", "plan", "--identities", "1e6", "--backbone", "t", "--image-size", 64, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gpu_memory_bytes"]["backbone weights"] < 2**20


def test_the_network_of_a_row_trains_is_stored_and_goes_on(tmp_path, tiny_set, toy):
    options = {"backbone__name": "toy", "backbone__depth": 2, "backbone__dropout": 0.1}
    whole = trainer(tmp_path, tiny_set, **options)
    losses(whole, 2)
    whole.save()
    whole.checkpointer.wait()
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = trainer(tmp_path, tiny_set, checkpoint, **options)
    assert losses(resumed, 2) == losses(whole, 2)
    stored = load_backbone(tmp_path / "run")[0]
    assert len(stored.blocks) == 2


def test_pictures_come_in_the_memory_format_that_the_network_names(tmp_path, tiny_set):
    made = trainer(tmp_path, tiny_set)
    seen = []
    made.program.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses(made, 1)
    assert memory_format(made.program.backbone) == torch.channels_last
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    assert not any(images.is_contiguous() for images in seen)
