"""Vision transformers: what they cost, what they leave out in training, what is decayed."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.backbones import build_backbone, recompute_activations, undecayed
from dist_train.backbones.config import backbone_section
from dist_train.backbones.conventions import part_places
from dist_train.backbones.token_draws import kept_patches, kept_paths
from dist_train.config import OptimizerConfig
from dist_train.errors import UserError
from dist_train.replica.groups import build_backbone_optimizer
from launch.plan_hardware import backbone_cost


def section(name="vit_nano", **keys):
    return backbone_section({"name": name, "embedding_dim": 24} | keys)


def network(**keys):
    torch.manual_seed(0)
    return build_backbone(section(**keys), 32).train()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


# InsightFace, arcface_torch's README, "ViT For Face Recognition"; as multiply-adds.
@pytest.mark.parametrize(
    ("name", "published"), [("vit_tiny", 1.5), ("vit_small", 5.7), ("vit_base", 11.4), ("vit_large", 25.3)]
)
def test_the_planner_counts_the_published_multiply_adds(name, published):
    cost = backbone_cost(section(name, embedding_dim=512), 112)
    assert cost.macs / 1e9 == pytest.approx(published, rel=0.03)


def test_the_planner_counts_the_patches_that_a_training_step_sees():
    whole, half = (backbone_cost(section(patch_drop=share, drop_path=0.1), 32) for share in (0.0, 0.5))
    assert 0.4 < half.macs / whole.macs < 0.55
    assert half.saved < 0.6 * whole.saved


def test_vit_nano_has_at_most_a_million_parameters_and_takes_up_to_64_px(pictures):
    made = network(embedding_dim=128)
    assert sum(parameter.numel() for parameter in made.parameters()) <= 1e6
    assert made(pictures).shape == (6, 128)
    with pytest.raises(UserError, match=r"image_size 72 px is too large for backbone\.name=vit_nano; use <= 64$"):
        build_backbone(section(), 72)
    with pytest.raises(UserError, match=r"image_size 32 px is too small for backbone\.name=vit_tiny; use >= 36"):
        build_backbone(section("vit_tiny"), 32)


def test_pixels_that_fill_no_patch_are_not_seen():
    made = build_backbone(section(), 34).eval()
    images = torch.zeros(1, 3, 34, 34)
    images[:, :, 32:] = images[:, :, :, 32:] = 1
    assert torch.equal(made(images), made(torch.zeros(1, 3, 34, 34)))


def test_matrices_alone_are_decayed():
    made = network(patch_drop=0.5)
    assert undecayed(made) == {"places", "absent"}
    config = OptimizerConfig(name="adamw", weight_decay=0.1, decay_norms=False)
    groups = build_backbone_optimizer(config, made).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    matrices = {id(module.weight) for module in made.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert decayed == matrices


def test_each_block_is_a_part():
    parts = part_places(network(patch_drop=0.5))  # refuses a parameter that is in none or in two
    assert list(parts) == ["stem", *(f"stages.{number}" for number in range(1, len(parts) - 1)), "embed"]
    assert parts["stages.2"] == ["blocks.1"]


def test_draws_depend_on_seed_step_and_position_alone_and_have_their_rates():
    positions, rates = np.arange(4000), [0.25, 0.5]
    whole = kept_paths(7, 3, positions, rates)
    assert np.array_equal(kept_paths(7, 3, positions[1000:1007], rates), whole[1000:1007])
    for other in (kept_paths(8, 3, positions, rates), kept_paths(7, 4, positions, rates), whole[::-1]):
        assert 0.3 < (other != whole).mean() < 0.5
    assert np.allclose(np.unique(whole), [0, 4 / 3, 2])
    assert np.allclose(whole.mean(axis=0), 1, atol=0.06)  # 4 standard deviations
    chosen = kept_patches(7, 3, positions, 16, 4)
    assert np.array_equal(kept_patches(7, 3, positions[5:9], 16, 4), chosen[5:9])
    assert (np.diff(chosen, axis=1) > 0).all()
    assert np.allclose(np.bincount(chosen.ravel(), minlength=16) / 4000, 1 / 4, atol=0.03)


def test_a_patch_that_is_left_out_has_no_part_in_the_embedding(pictures):
    made = network(patch_drop=0.5)
    made.embed.eval()  # a BatchNorm over the batch would mix the samples
    made.draw(0, 5, torch.arange(6))
    side = round(made._count**0.5)
    seen = torch.zeros(6, made._count).scatter(1, made._patches, 1.0).reshape(6, 1, side, side)
    assert (seen.sum((1, 2, 3)) == made._count // 2).all()
    seen = nn.functional.interpolate(seen, 32)
    before = made(pictures)
    assert torch.equal(made(torch.where(seen > 0, pictures, 0.5)), before)
    assert (made(torch.where(seen > 0, 0.5, pictures)) != before).any(dim=1).all()


def test_a_branch_that_is_left_out_adds_nothing_and_others_keep_the_mean(pictures):
    made = network(drop_path=0.6)
    made.draw(0, 5, torch.arange(6))
    block, tokens = made.blocks[-1], torch.randn(6, 4, made.places.shape[2])
    block.drop_path1.kept, block.drop_path2.kept = torch.tensor([0.0, 2.5] * 3), torch.zeros(6)
    attended = block.attn(block.norm1(tokens))
    torch.testing.assert_close(block(tokens), tokens + block.drop_path1.kept[:, None, None] * attended)
    assert torch.equal(block(tokens)[::2], tokens[::2])
    block.drop_path1.kept, block.drop_path2.kept = torch.zeros(6), torch.full((6,), 2.5)
    torch.testing.assert_close(block(tokens), tokens + 2.5 * block.mlp(block.norm2(tokens)))
    rates = [getattr(block.drop_path1, "rate", 0.0) for block in made.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.6, len(rates)))


def test_blocks_that_are_computed_again_leave_out_the_same(pictures):
    gradients = []
    for again in (False, True):
        made = network(drop_path=0.4, patch_drop=0.3)
        if again:
            recompute_activations(made)
        made.draw(0, 1, torch.arange(6))
        made(pictures).square().sum().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_only_training_leaves_out_and_it_must_have_drawn(pictures):
    plain, made = network().eval(), network(drop_path=0.4, patch_drop=0.3).eval()
    made.load_state_dict(plain.state_dict())  # of the same names, whatever a recipe leaves out
    assert torch.equal(made(pictures), plain(pictures))
    assert "absent" not in dict(plain.named_parameters())  # it would have no gradient
    made.train()
    with pytest.raises(RuntimeError, match=r"patch_drop: draw\(\) has not been called for these 6 samples"):
        made(pictures)
    made.draw(0, 0, torch.arange(5))
    with pytest.raises(RuntimeError, match="patch_drop: draw"):
        made(pictures)
    with pytest.raises(RuntimeError, match=r"drop_path: draw\(\) has not been called for these 6 samples"):
        network(drop_path=0.4)(pictures)


def test_without_timm_the_extra_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else found(name))
    with pytest.raises(
        UserError, match=r"backbone\.name=vit_\* \(blocks of timm\): needs timm, .* pip install 'headcount\[timm\]'"
    ):
        network()
