"""What the operands of the head's products are rounded to, on a CPU, and what that does to gradients."""

import pytest
import torch

from dist_train.errors import UserError
from dist_train.head import HeadConfig
from dist_train.head.arithmetic import Arithmetic
from tests.head.reference import solve
from tests.head.test_sharded_head import batch, one_step

CPU = torch.device("cpu")
# Bits of a fraction that are stored; the least and the largest distance of gradients from float64, relative to them.
# Half a spacing is 2**-11 of a number in tf32, 2**-8 in bfloat16; errors of many roundings cancel in part, and logits
# carry them into exponents. The least distance is what rounding must do.
FORMATS = {"float32": (23, 0.0, 1e-6), "tf32": (10, 1e-4, 1e-3), "bfloat16": (7, 1e-3, 1e-2)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_operands_are_rounded_to_the_nearest_number_of_the_format(name, side):
    values = torch.randn(40, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 40)
    arithmetic, one = Arithmetic(name, CPU), torch.eye(40)
    operands = (values, one) if side == "left" else (one, values)
    product = arithmetic.matmul(*operands, out=torch.empty(40, 40))
    spacing = torch.exp2(values.double().abs().log2().floor() - FORMATS[name][0])
    assert torch.equal(product.double(), (values.double() / spacing).round() * spacing)
    assert torch.equal(arithmetic.add_matmul(torch.ones(40, 40), *operands), 1 + product)


def test_the_format_is_float32_where_no_gpu_computes_and_nothing_else_is_asked():
    assert Arithmetic("auto", CPU).name == "float32"


def test_a_format_that_the_gpu_does_not_multiply_in_is_refused_and_auto_takes_float32(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    assert {Arithmetic(name, gpu).name for name in ("auto", "float32")} == {"float32"}
    for name in ("tf32", "bfloat16"):
        with pytest.raises(UserError, match=f"head.arithmetic={name}: Tesla T4 .* expected auto or float32"):
            Arithmetic(name, gpu)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert [Arithmetic(name, gpu).name for name in ("auto", "tf32")] == ["bfloat16", "tf32"]


def errors(settings: dict, classes: int) -> tuple[float, float, float]:
    """Of the loss, the embeddings' gradient and the rows', each relative to float64."""
    settings = {"weight_decay": 0.0, "init_std": 0.05} | settings
    found = one_step(0, 1, settings, classes)
    embeddings, labels = batch(classes, 1)
    rows = torch.from_numpy(found["before"]).view(classes, 1, -1)
    every, counts = torch.ones(classes, dtype=torch.bool), torch.ones(classes)
    answer = solve(HeadConfig(**settings), rows, embeddings, labels, every, found["scale"], counts)
    change = torch.from_numpy(found["after"]).double() - torch.from_numpy(found["before"])
    rows_grad = change.view(rows.shape) / (-0.5 * 8)  # a learning rate of 0.5, a loss times 8
    pairs = (
        (torch.tensor(found["loss"]), answer.loss),
        (torch.from_numpy(found["grad"]), answer.embeddings_grad),
        (rows_grad, answer.rows_grad),
    )
    first, second, third = (float((got.double() - exact).norm() / exact.norm()) for got, exact in pairs)
    return first, second, third


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("margin", [{"margin": "arcface", "scale": 16.0}, {"margin": "softmax", "init_std": 1.0}])
def test_gradients_are_as_far_from_float64_as_the_format_says(name, margin):
    _, least, most = FORMATS[name]
    loss, *gradients = errors({"arithmetic": name} | margin, 61)
    assert least / 100 <= loss <= most
    assert all(least <= error <= most for error in gradients)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("float32", 0, 1e-5), ("tf32", 5e-5, 5e-4), ("bfloat16", 5e-4, 5e-3)]
)
def test_the_products_that_give_the_gradients_are_rounded_too(name, least, most):
    # At this scale all logits are nearly 0, so that what the first product loses is lost on the softmax.
    loss, *gradients = errors({"arithmetic": name, "margin": "normface", "scale": 0.01}, 5)
    assert loss < 1e-6
    assert all(least <= error <= most for error in gradients)
