"""Margins alone: their derivatives, their continuation, their state. Tier 1: no ranks, no devices."""

import math

import pytest
import torch

from dist_train.errors import UserError
from dist_train.head import HeadConfig
from dist_train.head.config import AdaptiveConfig
from dist_train.head.margins.adaptive import class_margins
from dist_train.head.margins.base import Classes
from dist_train.head.margins.build import build_margin
from dist_train.head.margins.table import MARGINS

CPU = torch.device("cpu")
NAMES = [name for name, spec in MARGINS.items() if spec.normalised]


def margin(name, **settings):
    return build_margin(HeadConfig(margin=name, **settings), Classes(10, 0, 10, CPU, torch.arange(1, 11)))


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_is_that_of_the_formula(name):
    one = margin(name, scale=2.0)
    cosines = torch.linspace(-0.97, 0.96, 41, dtype=torch.float64).requires_grad_()
    norms = torch.linspace(20.0, 90.0, 41, dtype=torch.float64).requires_grad_()
    classes = torch.arange(41) % 10
    # AdaFace's norm acts without gradient, so it is held fixed there.
    inputs = (cosines, norms.detach() if name == "adaface" else norms)
    assert torch.autograd.gradcheck(lambda t, n: one.target_logits(t, n, classes) + 0 * n.sum(), inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", ["default", "strong"])
def test_the_target_logit_rises_with_the_cosine(name, strength):
    strong = {"sphereface": {"m1": 4.0}, "arcface": {"m2": 1.4}, "combined": {"m1": 3.0, "m2": 1.0}}
    one = margin(name, **(strong.get(name, {}) if strength == "strong" else {}))
    cosines = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    steps = one.target_logits(cosines, torch.full_like(cosines, 20.0), torch.zeros(2001, dtype=torch.int64)).diff()
    # AdaFace keeps the turned angle within [0, pi], where it is level.
    assert (steps >= 0).all() if name == "adaface" else (steps > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_cosines_of_one_and_minus_one_have_finite_logits_and_slopes(name):
    one = margin(name)
    cosines = torch.tensor([-1.0, 1.0, 1.0000001, -1.0000001]).requires_grad_()
    logits = one.target_logits(cosines, torch.full((4,), 20.0), torch.zeros(4, dtype=torch.int64))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert cosines.grad.isfinite().all()


def test_the_easy_margin_leaves_wide_angles_alone():
    easy, hard = margin("arcface", easy_margin=True), margin("arcface")
    cosines, norms, classes = torch.tensor([-0.5, 0.5]), torch.ones(2), torch.zeros(2, dtype=torch.int64)
    assert easy.target_logits(cosines, norms, classes)[0] == -32.0
    assert easy.target_logits(cosines, norms, classes)[1] == hard.target_logits(cosines, norms, classes)[1]


def test_arcface_past_pi_falls_by_the_published_amount():
    value = margin("arcface", scale=1.0).target_logits(torch.tensor([-0.95]), torch.ones(1), torch.zeros(1).long())
    assert math.isclose(float(value), -0.95 - 0.5 * math.sin(0.5), rel_tol=1e-6)


def test_adaface_moves_its_averages_only_in_training():
    one = margin("adaface")
    one.observe(torch.tensor([10.0, 30.0]), None, training=False)
    assert float(one.mean) == 20.0
    one.observe(torch.tensor([10.0, 40.0]), None, training=True)
    assert math.isclose(float(one.mean), 0.99 * 20 + 0.01 * 25, rel_tol=1e-6)
    one.observe(torch.tensor([7.0]), None, training=True)  # a batch of one has no deviation, not a NaN
    assert one.deviation.isfinite()


def test_adaptive_margins_are_largest_for_the_rarest_class():
    margins = class_margins(AdaptiveConfig(lowest=0.2, highest=0.6), torch.tensor([16, 1, 0, 10_000]))
    assert torch.allclose(margins[[1, 2, 3]], torch.tensor([0.6, 0.6, 0.2]))
    assert 0.2 < margins[0] < 0.6
    assert torch.allclose(class_margins(AdaptiveConfig(), torch.full((3,), 5)), torch.tensor(0.5))


def test_adaptive_margins_without_counts_are_refused():
    with pytest.raises(UserError, match="number of images of each class"):
        build_margin(HeadConfig(margin="adaptive"), Classes(10, 0, 10, CPU))
    with pytest.raises(UserError, match=r"shape \[3\] for 10 classes"):
        build_margin(HeadConfig(margin="adaptive"), Classes(10, 0, 10, CPU, torch.ones(3)))


class Recorder:
    """A configuration that remembers which of its keys were read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_reads_the_keys_that_its_row_names_and_no_other_margins(name):
    config = Recorder(HeadConfig(margin=name))
    build_margin(config, Classes(10, 0, 10, CPU, torch.arange(1, 11)))
    keys = frozenset().union(*(spec.reads for spec in MARGINS.values()))
    assert config.read & keys == MARGINS[name].reads
