"""Networks that have lost channels: built from the widths in their section of a recipe, or refused."""

import pytest
import torch
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.backbones.widths import layer_widths
from dist_train.errors import UserError

# The inner channels of the first block alone: what enters and leaves the block stays.
INNER = {f"stages.0.residual.{number}": (5, 5) for number in (2, 3)} | {
    "stages.0.residual.1": (16, 5),
    "stages.0.residual.4": (5, 32),
}


def build(widths=None, name="tiny", size=32):
    torch.manual_seed(0)
    return build_backbone(backbone_section({"name": name, "embedding_dim": 8, "channels": widths}), size)


def test_layers_with_fewer_channels_keep_their_kind_and_train():
    network = build(INNER)
    assert layer_widths(network) == layer_widths(build()) | INNER
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert network.stages[0].residual[1].weight.grad.shape == (5, 16, 3, 3)
    assert isinstance(network.stages[0].residual[3], nn.PReLU)


def test_a_network_without_widths_draws_the_same_weights_as_before_there_were_any():
    torch.manual_seed(0)
    plain = build_backbone(backbone_section({"name": "tiny", "embedding_dim": 8}), 32).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in build({}).state_dict().items())


def test_filters_of_single_channels_stay_so():
    names = {"0.0": (64, 40), "0.1": (40, 40), "1": (40, 40), "2.0": (40, 40), "2.1": (40, 40), "3": (40, 40)}
    widths = {f"features.4.residual.{name}": width for name, width in names.items()}
    network = build(widths | {"features.4.residual.4.0": (40, 64)}, "mobilefacenet")
    assert network.features[4].residual[2][0].groups == 40
    network.eval()(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"stages.9": (1, 1)}, "no layer 'stages.9'"),
        ({"stages.0": (1, 1)}, "stages.0 is a Block, which has no channels"),
        ({"stem.0": (3, 17)}, r"\[3, 17\], expected at most \[3, 16\]"),
        ({"stem.1": (8, 9)}, "expected the same number twice"),
        ({"stem.0": (3, 8)}, "do not fit one another at 32 px"),
        (INNER | {"stages.0.residual.4": (6, 32)}, "do not fit one another"),
        ({"embed.3": (100, 8)}, "do not fit one another"),
    ],
)
def test_widths_of_no_such_network_are_refused(widths, said):
    with pytest.raises(UserError, match=f"backbone.channels: .*{said}"):
        build(widths)


@pytest.mark.parametrize("widths", [{"stem.0": (0, 1)}, {"stem.0": (1 << 30, 1)}, {"stem.0": (1,)}, {"stem.0": "a"}])
def test_numbers_that_are_no_widths_are_refused(widths):
    with pytest.raises(ValueError, match="channels"):
        backbone_section({"name": "tiny", "channels": widths})
