"""What is left out: the channels that matter least, by each measure."""

import pytest
import torch
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.backbones.widths import layer_widths
from dist_train.errors import UserError
from dist_train.prune.channels import prune_channels
from dist_train.prune.embedding import embedding_importance, last_layers
from dist_train.prune.importance import first_order_gradients
from dist_train.prune.options import By


def network_of(name, dim=8, seed=0):
    torch.manual_seed(seed)
    return build_backbone(backbone_section({"name": name, "embedding_dim": dim}), 32).eval()


def test_gradients_of_weights_are_those_of_the_unit_embedding_by_its_jacobian():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).double()
    picture = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    found = first_order_gradients(network, picture.repeat(2000, 1, 1, 1), batch_size=1)["1.weight"]

    def unit(weight):
        return nn.functional.normalize(picture.flatten(1) @ weight.T + network[1].bias)

    jacobian = torch.autograd.functional.jacobian(unit, network[1].weight.detach())  # [1, 4, 4, 3]
    torch.testing.assert_close(found, jacobian.square().sum((0, 1)).sqrt(), rtol=0.06, atol=0.01)


def test_the_layers_of_an_embedding_are_those_that_change_with_its_length():
    names = set(last_layers(network_of("mobilefacenet"), network_of("mobilefacenet", 6)))
    assert names == {
        "embed.4.weight",
        *(f"embed.5.{each}" for each in ("weight", "bias", "running_mean", "running_var")),
    }


def test_numbers_of_an_embedding_matter_by_their_weights_their_scale_or_what_they_carry():
    network, other = network_of("mobilefacenet"), network_of("mobilefacenet", 6)
    with torch.no_grad():
        network.embed[4].weight[3] *= 0.1
        network.embed[5].weight[5] = -0.01  # the sign does not matter
        network.embed[5].running_var[1] = 1e8
    last = last_layers(network, other)
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    assert [int(embedding_importance(network, last, by, pictures).argmin()) for by in By] == [3, 5, 1]


def test_a_normalisation_without_scales_ranks_nothing():
    network = network_of("tiny")
    with pytest.raises(UserError, match="has no trained scale; use --by magnitude"):
        embedding_importance(network, last_layers(network, network_of("tiny", 6)), By.batchnorm, None)


@pytest.mark.parametrize("by", list(By))
def test_channels_that_carry_nothing_go_first(by):
    network = network_of("tiny")
    block = network.stages[1].residual  # 32 channels enter it, 64 are inside
    dead = torch.arange(0, 64, 4)
    with torch.no_grad():
        block[1].weight[dead] = 0
        block[2].weight[dead] = 0
        block[4].weight[:, dead] = 0
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    gradients = first_order_gradients(network, pictures) if by is By.first_order else None
    pruned = prune_channels(network, 32, 0.75, 1, by, gradients)
    alive = torch.ones(64, dtype=torch.bool).index_fill(0, dead, False)
    assert torch.equal(pruned.stages[1].residual[2].running_mean, block[2].running_mean[alive])
    assert pruned.stages[1].residual[1].out_channels == 48
    assert pruned.embed[3].out_features == 8
    assert layer_widths(network) == layer_widths(network_of("tiny")), "the original is left as it is"
