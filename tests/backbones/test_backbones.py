import pytest
import torch

from dist_train.backbones import BackboneConfig, build_backbone
from dist_train.errors import UserError


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("tiny", 112),
        ("tiny", 50),
        ("nano", 32),
        ("mobilefacenet", 112),
        ("mobilefacenet", 64),
        ("iresnet18", 112),
        ("iresnet34", 64),
    ],
)
def test_a_backbone_gives_one_embedding_a_picture_at_any_size(name, image_size):
    backbone = build_backbone(BackboneConfig(name=name, embedding_dim=96), image_size)
    assert backbone(torch.randn(2, 3, image_size, image_size)).shape == (2, 96)


# Parameters in millions at 112 px and D = 512 as the models' users know them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("iresnet18", 24.0), ("iresnet34", 34.1), ("iresnet50", 43.6), ("iresnet100", 65.2), ("iresnet200", 118.8)],
)
def test_iresnets_have_their_published_size(name, millions):
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name), 112)
    count = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


def test_mobilefacenet_has_about_a_million_parameters():
    backbone = build_backbone(BackboneConfig(name="mobilefacenet", embedding_dim=128), 112)
    assert 0.9e6 < sum(p.numel() for p in backbone.parameters()) < 1.1e6


def test_a_picture_too_large_for_nano_is_refused_by_size():
    with pytest.raises(UserError, match=r"image_size 112 px is too large for backbone\.name=nano; use <= 64, or tiny"):
        build_backbone(BackboneConfig(name="nano"), 112)


def test_a_picture_too_small_for_the_network_is_refused_by_size():
    with pytest.raises(UserError, match="image_size 16 px is too small"):
        build_backbone(BackboneConfig(name="tiny"), 16)
