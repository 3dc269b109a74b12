"""What accumulation, precision, recomputing, averaging and weight decay do to the numbers, on one rank."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.backbones import BackboneConfig, build_backbone, recompute_activations
from dist_train.backbones.iresnet import IResNet
from dist_train.config import OptimizerConfig
from dist_train.replica.base import compute_dtype
from dist_train.replica.groups import build_backbone_optimizer
from tests.sets import write_set
from tests.single import losses, trainer


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def plain_network(_config, _size):
    """Without BatchNorm, which by its nature sees only a micro-batch."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.PReLU(), nn.Linear(32, 16))


def test_accumulation_in_two_and_in_four_equals_the_large_batch(tmp_path, tiny_set, monkeypatch):
    monkeypatch.setattr("dist_train.train.replicas.build_backbone", plain_network)
    curves = {}
    for micro in (48, 24, 12):
        made = trainer(tmp_path, tiny_set, train__micro_batch_size=micro, optimizer__clip_norm=0.5)
        assert made.accumulation == 48 // micro
        curves[micro] = losses(made, 6)
    assert curves[48][-1] < curves[48][0]
    for micro in (24, 12):
        np.testing.assert_allclose(curves[micro], curves[48], rtol=1e-5)


def test_float16_learns_as_float32_and_an_overflow_halves_its_scale_and_nothing_else(tmp_path, tiny_set, monkeypatch):
    monkeypatch.setattr("dist_train.train.replicas.build_backbone", plain_network)
    plain = losses(trainer(tmp_path, tiny_set), 4)
    half = trainer(tmp_path, tiny_set, train__precision="float16")
    scaler = half.program.replica._scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    np.testing.assert_allclose(losses(half, 4), plain, rtol=1e-2)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
    before = copy.deepcopy(half.program.backbone.state_dict())
    centers = half.program.head.class_centers().clone()
    assert np.isnan(losses(half, 1)).all()
    assert half.bad_steps.count == 1
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in half.program.backbone.state_dict().items())
    assert torch.equal(half.program.head.class_centers(), centers)


def test_the_precision_auto_is_no_bfloat16_that_a_gpu_emulates(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert compute_dtype("auto", device) == torch.float32
    assert compute_dtype("bfloat16", device) == torch.bfloat16
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert compute_dtype("auto", device) == torch.bfloat16


def test_a_resumed_float16_run_has_the_scale_and_its_count_of_good_steps(tmp_path, tiny_set, monkeypatch):
    monkeypatch.setattr("dist_train.train.replicas.build_backbone", plain_network)
    first = trainer(tmp_path, tiny_set, train__precision="float16")
    first.program.replica._scaler.load_state_dict(first.program.replica._scaler.state_dict() | {"scale": 512.0})
    losses(first, 3)
    first.save()
    first.checkpointer.wait()
    state = first.program.replica._scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (512.0, 3)
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert (
        trainer(tmp_path, tiny_set, checkpoint, train__precision="float16").program.replica._scaler.state_dict()
        == state
    )


@pytest.mark.parametrize("name", ["tiny", "mobilefacenet"])
def test_recomputed_activations_change_neither_gradients_nor_statistics(name):
    torch.manual_seed(0)
    kept = build_backbone(BackboneConfig(name=name, embedding_dim=8, dropout=0.3), 32)
    again = copy.deepcopy(kept)
    recompute_activations(again)
    images = torch.randn(4, 3, 32, 32)
    saved = {}
    for backbone in (kept, again):
        saved[backbone] = 0

        def count(tensor, backbone=backbone):
            saved[backbone] += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = backbone(images).square().sum()
        loss.backward()
    assert saved[again] < saved[kept] / 2
    for (key, one), other in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
    for (key, one), other in zip(kept.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert kept.state_dict().keys() == again.state_dict().keys()


def test_a_compiled_run_has_the_same_losses(tmp_path, tiny_set, monkeypatch):
    compiled = []

    def capture(network, **_):  # captured and differentiated as by default, but run as it is: no C++ compiler is needed
        compiled.append(network)
        nn.Module.compile(network, backend="aot_eager")

    plain = losses(trainer(tmp_path, tiny_set), 3)
    monkeypatch.setattr(IResNet, "compile", capture)
    found = losses(trainer(tmp_path, tiny_set, train__compile=True), 3)
    assert len(compiled) == 1
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_a_run_with_activation_checkpointing_has_the_same_losses(tmp_path, tiny_set):
    plain = losses(trainer(tmp_path, tiny_set), 3)
    assert losses(trainer(tmp_path, tiny_set, train__activation_checkpointing=True), 3) == plain


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_are_spared_weight_decay_by_option(name):
    backbone = build_backbone(BackboneConfig(name="tiny", embedding_dim=8), 32)
    matrices = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    for spare in (False, True):
        optimizer = build_backbone_optimizer(
            OptimizerConfig(name=name, weight_decay=0.1, decay_norms=not spare), backbone
        )
        decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        assert decayed == (matrices if spare else {id(p) for p in backbone.parameters()})


def test_the_moving_average_is_what_is_evaluated_and_goes_on_after_a_resume(tmp_path, tiny_set):
    option = {"train__ema_decay": 0.5}
    whole = trainer(tmp_path, tiny_set, **option)
    weight = next(whole.program.backbone.parameters())
    expected = None
    batches = iter(whole.loader)
    for _ in range(2):
        whole.train_step(next(batches))
        expected = weight.detach().clone() if expected is None else 0.5 * expected + 0.5 * weight.detach()
    average = whole.program.evaluated()
    assert not average.training
    torch.testing.assert_close(next(average.parameters()), expected)
    whole.save()
    whole.checkpointer.wait()
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = trainer(tmp_path, tiny_set, checkpoint, **option)
    for one in (whole, resumed):
        losses(one, 1)
    states = [one.program.evaluated().state_dict() for one in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
