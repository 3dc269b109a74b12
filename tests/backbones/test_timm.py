"""Networks of timm: any picture size, any weights of theirs, an embedding of ours."""

import pytest
import timm
import torch

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.backbones.conventions import lies_in, part_places, undecayed
from dist_train.config import load_config
from dist_train.errors import UserError
from dist_train.weights.fit import fit_weights
from launch.plan_hardware import backbone_cost
from tests.launch.recipes import write_recipe


def section(model, **keys):
    return backbone_section({"name": f"timm/{model}", "embedding_dim": 12, **keys})


@pytest.mark.parametrize(
    ("model", "size"), [("resnet18", 40), ("vit_tiny_patch16_224", 48), ("mobilenetv3_small_050", 32)]
)
def test_timms_weights_make_timms_features_under_an_embedding(model, size):
    network = build_backbone(section(model), size).eval()
    sized = {"img_size": size} if model.startswith("vit") else {}
    theirs = timm.create_model(model, pretrained=False, num_classes=7, **sized).eval()
    fit = fit_weights(theirs.state_dict(), network.state_dict(), section(model))
    assert (fit.source, fit.misfits()) == ("timm", "")
    assert {name for name in network.state_dict() if name not in fit.tensors} == {
        f"embed.{name}" for name in ("1.weight", "1.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked")
    }
    network.load_state_dict(fit.tensors, strict=False)
    images = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(network(images), network.embed(features))
    # Our own names fit as well, the embedding too.
    assert len(fit_weights(network.state_dict(), network.state_dict(), section(model)).tensors) == len(
        network.state_dict()
    )


def test_what_timm_says_of_decay_and_cost_is_heard():
    assert "body.pos_embed" in undecayed(build_backbone(section("vit_tiny_patch16_224"), 48))
    cost = backbone_cost(section("vit_tiny_patch16_224"), 224)
    assert cost.macs == pytest.approx(1.26e9, rel=0.02)  # as timm publishes it


@pytest.mark.parametrize(
    ("model", "count", "first"),
    [
        ("resnet18", 10, "body.bn1"),
        ("vit_tiny_patch16_224", 14, "body.pos_embed"),
        ("convnext_atto", 15, "body.stem.1"),
    ],
)
def test_timms_groups_of_layers_are_parts_a_block_of_a_transformer_each(model, count, first):
    network = build_backbone(section(model), 64)
    parts = part_places(network)  # refuses a parameter that is in none or in two
    assert list(parts) == ["stem", *(f"stages.{n}" for n in range(1, count - 1)), "embed"]
    assert first in parts["stem"]
    if model == "vit_tiny_patch16_224":
        assert all(place.startswith("body.blocks.3.") for place in parts["stages.4"])
    kept = [name for name, _ in network.named_buffers() if lies_in(name, parts["stem"])]
    assert kept == (
        [f"body.bn1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")] * (model == "resnet18")
    )


def test_a_network_that_timm_does_not_have_is_refused_with_what_is_near(tmp_path):
    with pytest.raises(UserError, match=r"backbone\.name=timm/resnt18: timm .* has no such network; did you mean .*18"):
        build_backbone(section("resnt18"), 64)
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    assert load_config(recipe, ["backbone.name=timm/resnet18"]).backbone.name == "timm/resnet18"
    for name in ("timm/", "timm/hf-hub:a/b", "timm/../a", "timm"):
        with pytest.raises(UserError, match=r"backbone\.name: input should be 'iresnet18', .* or 'nano'; found"):
            load_config(recipe, [f"backbone.name={name}"])
