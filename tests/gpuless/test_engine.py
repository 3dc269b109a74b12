"""The stand-ins that the proof rests on: the backward pass in Python, and the ledger."""

import gc
from unittest import mock

import pytest
import torch
from torch import nn

from dist_train.backbones import BackboneConfig, build_backbone
from tests.gpuless.engine import Engine
from tests.gpuless.ledger import Ledger
from tests.gpuless.pretence import GPU, pretended_gpu

ENGINE = "torch.autograd.Variable._execution_engine"


def gradients(network, images):
    network.zero_grad()
    (network(images) * torch.linspace(0, 1, 16)).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_gradients_are_those_of_torchs_own_engine_and_nothing_saved_is_kept():
    torch.manual_seed(0)
    network, images = build_backbone(BackboneConfig(name="nano", embedding_dim=16), 32), torch.randn(4, 3, 32, 32)
    expected = gradients(network, images)
    engine = Engine()
    with mock.patch(ENGINE, engine), engine.keeping():
        found = gradients(network, images)
    assert engine._saved == {}
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_chosen_inputs_are_those_of_torchs_own_engine():
    a, b = (torch.randn(3, 2, requires_grad=True) for _ in range(2))

    def asked():
        inner = a * b
        return torch.autograd.grad((inner.exp() + a[:1]).sum(), [a, inner], retain_graph=False)

    expected = asked()
    with mock.patch(ENGINE, Engine()):
        found = asked()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_ledger_counts_what_lives_and_the_most_that_did():
    with pretended_gpu() as gpu:
        ledger = Ledger(gpu, lambda name, args, tensor, asking: name)
        first = torch.zeros(1000, device=GPU)
        view = first[10:]
        second = first + 1
        del first, second
        gc.collect()
        assert ledger.now.total() == 4000  # which the view holds
        del view
        gc.collect()
        torch.zeros(5000)  # on the host
    assert ledger.now.total() == 0
    assert (ledger.peak_total, ledger.peak["add"]) == (8000, 4000)


def test_a_weight_that_is_moved_stays_a_weight():
    with pretended_gpu():
        moved = nn.Linear(3, 2).to(GPU)
        assert all(isinstance(each, nn.Parameter) and each.device == GPU for each in moved.parameters())
        with pytest.raises(RuntimeError, match=r"same device|different devices"):
            moved(torch.zeros(4, 3))
