"""The mean of checkpoints: its numbers, its BatchNorm statistics, and what has no mean."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.errors import UserError
from dist_train.weights import average as average_module
from dist_train.weights.average import average_backbones, choose_pictures, renew_statistics
from dist_train.weights.export import export_average
from tests.launch.recipes import headcount_here
from tests.sets import picture, write_set
from tests.weights.runs import CLASSES, read_once, train_run

VIEWS = 8


@pytest.fixture(autouse=True)
def checkpoints_are_read_once(monkeypatch):
    read_once(monkeypatch, average_module)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("parents"))


@pytest.fixture
def checkpoints(run):
    return committed_checkpoints(run)


@pytest.fixture(scope="module")
def data(run):
    return str(run.parent / "set")


def all_pictures():
    """The whole set, [80, 3, 32, 32], as the network takes it."""
    raw = [picture(label, view, 32)[:, :, ::-1].copy() for label in range(CLASSES) for view in range(VIEWS)]
    return torch.stack([torch.from_numpy(each).permute(2, 0, 1) for each in raw]).float() / 127.5 - 1


def norms_of(backbone):
    return {name: each for name, each in backbone.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}


def test_numbers_are_the_mean_and_statistics_those_of_a_plain_forward(checkpoints, data, tmp_path):
    assert len(checkpoints) == 2
    export_average(checkpoints, tmp_path / "soup.safetensors", "headcount", data, 100)
    found = load_file(tmp_path / "soup.safetensors")
    one, other = (load_backbone(each)[0] for each in checkpoints)
    parameters = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        plain = ((parameter.double() + parameters[name].double()) / 2).float()
        assert torch.equal(found[name], plain)
    # The set is one batch. Each norm sees a batch's own statistics, and so does what comes behind it.
    plain = one
    plain.load_state_dict(found)
    inputs = {}
    for name, norm in norms_of(plain).items():
        norm.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0].double()}))
    with torch.no_grad():
        plain.train()(all_pictures())
    assert len(inputs) > 5
    for name, values in inputs.items():
        axes = [axis for axis in range(values.dim()) if axis != 1]
        for kept, expected in (("mean", values.mean(axes)), ("var", values.var(axes))):
            torch.testing.assert_close(found[f"{name}.running_{kept}"].double(), expected, rtol=1e-4, atol=1e-5)


def test_several_batches_count_equally(checkpoints, data, monkeypatch):
    monkeypatch.setattr(average_module, "BATCH_SIZE", 20)
    mean = average_backbones(checkpoints)
    pictures = choose_pictures(data, 100, mean.parents[0])
    assert (pictures.batches, pictures.batch_size) == (4, 20), "the whole set, once"
    assert choose_pictures(data, 3, mean.parents[0]).batches == 3
    renew_statistics(mean.backbone, pictures)
    first = mean.backbone.stem[1]
    with torch.no_grad():
        expected = mean.backbone.stem[0](all_pictures()).mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in mean.backbone.modules())


def test_the_order_of_the_parents_does_not_matter_and_the_card_names_them(checkpoints, data, tmp_path):
    for name, given in (("a", checkpoints), ("b", checkpoints[::-1])):
        (tmp_path / name).mkdir()
        done = headcount_here(
            "checkpoint", "average", *given, "-o", tmp_path / name / "soup.safetensors", "--set", data
        )
        assert done.returncode == 0, done.stderr
        assert "mean of 2 checkpoints; written: soup.safetensors, soup.md" in done.stdout
    for name in ("soup.safetensors", "soup.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    card = (tmp_path / "a" / "soup.md").read_text()
    assert "# Mean of 2 checkpoints" in card
    assert "| run, step 2 | 10 identities, set " in card
    assert "| run, step 4 | 10 identities, 80 pictures, set " in card
    assert "| BatchNorm statistics | of 80 pictures of " in card
    assert "Figures" not in card
    with safe_open(tmp_path / "a" / "soup.safetensors", "pt") as file:
        assert file.metadata()["parents"] == "run, step 2; run, step 4"


def test_dropout_is_off_while_statistics_are_made(checkpoints, data, monkeypatch):
    load = average_module.load_backbone

    def with_dropout(path):
        backbone, config, progress = load(path)
        section = config.backbone.model_copy(update={"dropout": 0.9})
        return backbone, config.model_copy(update={"backbone": section}), progress

    plain = average_backbones(checkpoints)
    monkeypatch.setattr(average_module, "load_backbone", with_dropout)
    dropped = average_backbones(checkpoints)
    pictures = choose_pictures(data, 1, plain.parents[0])
    for each in (plain, dropped):
        renew_statistics(each.backbone, pictures)
    assert torch.equal(plain.backbone.embed[4].running_var, dropped.backbone.embed[4].running_var)


@pytest.mark.parametrize(
    ("key", "value", "pixels", "said"),
    [
        ("embedding_dim", 8, 32, "backbone.embedding_dim is 16 in .*step-00000002, 8 in .*step-00000004"),
        ("name", "nano", 32, "backbone.name is tiny in .*, nano in "),
        ("name", "tiny", 64, "pictures in pixels is 32 in .*, 64 in "),
    ],
)
def test_other_networks_have_no_mean(checkpoints, monkeypatch, key, value, pixels, said):
    load = average_module.load_backbone

    def changed(path):
        backbone, config, progress = load(path)
        if path.name.endswith("4"):
            section = config.backbone.model_copy(update={key: value})
            config = config.model_copy(update={"backbone": section})
            progress = replace(progress, image_size=pixels)
            backbone = build_backbone(section, pixels)
        return backbone, config, progress

    monkeypatch.setattr(average_module, "load_backbone", changed)
    with pytest.raises(UserError, match=said):
        average_backbones(checkpoints)


def test_a_mean_takes_two_different_checkpoints(run, checkpoints):
    with pytest.raises(UserError, match="1 checkpoint; a mean takes two or more"):
        average_backbones(checkpoints[:1])
    again = run / ".." / "run" / "checkpoints" / checkpoints[0].name
    with pytest.raises(UserError, match="the same checkpoint is given twice"):
        average_backbones([*checkpoints, again])


def test_a_diverged_parent_is_named(checkpoints, monkeypatch):
    load = average_module.load_backbone

    def diverged(path):
        backbone, *rest = load(path)
        nn.init.constant_(backbone.stem[0].weight, float("nan" if path.name.endswith("4") else 0))
        return backbone, *rest

    monkeypatch.setattr(average_module, "load_backbone", diverged)
    with pytest.raises(UserError, match=r"step-00000004: stem.0.weight is not finite"):
        average_backbones(checkpoints)


def test_a_set_is_needed_and_must_have_the_networks_pixels(checkpoints, data, tmp_path):
    with pytest.raises(UserError, match="--set is missing: tiny has BatchNorm"):
        export_average(checkpoints, tmp_path / "soup.safetensors", "headcount", None, 100)
    write_set(tmp_path / "large", classes=1, views=2, size=48)
    with pytest.raises(UserError, match="pictures of 48 px, the network was trained on 32 px"):
        export_average(checkpoints, tmp_path / "soup.safetensors", "headcount", str(tmp_path / "large"), 100)
    write_set(tmp_path / "one", classes=1, views=1)
    with pytest.raises(UserError, match="1 picture; a variance takes two or more"):
        export_average(checkpoints, tmp_path / "soup.safetensors", "headcount", str(tmp_path / "one"), 100)
    with pytest.raises(UserError, match="no such directory"):
        export_average(checkpoints, tmp_path / "soup.safetensors", "headcount", str(tmp_path / "none"), 100)
    assert not list(tmp_path.glob("*soup*"))


def test_a_network_without_batchnorm_needs_no_set(checkpoints, tmp_path, monkeypatch):
    networks = iter([nn.Linear(2, 2), nn.Linear(2, 2)])
    load = average_module.load_backbone
    monkeypatch.setattr(average_module, "load_backbone", lambda path: (next(networks), *load(path)[1:]))
    monkeypatch.setattr(average_module, "build_backbone", lambda *_: nn.Linear(2, 2))
    export_average(checkpoints, tmp_path / "soup.pt", "headcount", None, 100)
    assert set(torch.load(tmp_path / "soup.pt", weights_only=True)) == {"weight", "bias"}
    networks = iter([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(UserError, match="has no BatchNorm statistics to make anew"):
        export_average(checkpoints, tmp_path / "soup.pt", "headcount", "set", 100)
