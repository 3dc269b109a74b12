"""Mining of hard samples and the three losses, over the samples of all ranks, against plain float64 formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.mtcnn.networks import _activated
from data_prep.mtcnn.training.losses import FACE, LANDMARK, NEGATIVE, PART, Targets, Tasks, cascade_losses, hardest
from dist_train.head.exchange import HeadGroup
from tests.ranks import run_ranks

TASKS = Tasks(box=0.5, points=0.7, hard_mining=0.7)


def batch(samples=18):
    rng = np.random.default_rng(3)
    kind = rng.choice([NEGATIVE, NEGATIVE, NEGATIVE, PART, FACE, LANDMARK, LANDMARK], samples)
    kind[:6] = [LANDMARK, LANDMARK, PART, NEGATIVE, LANDMARK, PART]  # the first of three ranks has a task to itself
    return rng.normal(size=(samples, 15)), kind, rng.normal(size=(samples, 4)), rng.normal(size=(samples, 10))


def plain(answers, kind, boxes, points, tasks):
    """The loss and its gradient, sample by sample, in float64."""
    gradient = np.zeros_like(answers)
    classified = [row for row in range(len(kind)) if kind[row] in (NEGATIVE, FACE)]
    sign = {row: -1 if kind[row] == FACE else 1 for row in classified}
    entropy = {row: np.log1p(np.exp(sign[row] * answers[row, 0])) for row in classified}
    worst = sorted(classified, key=lambda row: -entropy[row])[: int(tasks.hard_mining * len(classified))]
    total = sum(entropy[row] for row in worst) / len(worst)
    for row in worst:
        gradient[row, 0] = sign[row] / (1 + np.exp(-sign[row] * answers[row, 0])) / len(worst)
    for kinds, weight, columns, wanted in (
        ((FACE, PART), tasks.box, slice(1, 5), boxes),
        ((LANDMARK,), tasks.points, slice(5, 15), points),
    ):
        rows = [row for row in range(len(kind)) if kind[row] in kinds]
        for row in rows:
            away = answers[row, columns] - wanted[row]
            total += weight * (away**2).sum() / len(rows)
            gradient[row, columns] = 2 * weight * away / len(rows)
    return total, gradient


def share_of_rank(rank, world_size):
    answers, kind, boxes, points = batch()
    own = slice(rank * len(kind) // world_size, (rank + 1) * len(kind) // world_size)
    given = torch.tensor(answers[own], requires_grad=True)
    targets = Targets(torch.tensor(kind[own]), torch.tensor(boxes[own]), torch.tensor(points[own]))
    loss = cascade_losses(given, targets, TASKS, HeadGroup(None, rank, world_size)).total(TASKS)
    loss.backward()
    return loss.item(), given.grad.numpy()


@pytest.mark.unit
def test_losses_and_gradients_are_those_of_the_plain_formula():
    loss, gradient = share_of_rank(0, 1)
    wanted, slopes = plain(*batch(), TASKS)
    assert loss == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(gradient, slopes, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 3])
def test_hard_samples_are_those_of_all_ranks_together(world_size):
    shares = run_ranks(world_size, share_of_rank)
    wanted, slopes = plain(*batch(), TASKS)
    assert sum(loss for loss, _ in shares) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(np.concatenate([gradient for _, gradient in shares]), slopes, atol=1e-12)


@pytest.mark.unit
def test_a_batch_without_a_kind_has_no_loss_of_its_tasks_and_finite_gradients():
    answers = torch.randn(4, 15, dtype=torch.float64, requires_grad=True)
    targets = Targets(torch.full((4,), LANDMARK), torch.zeros(4, 4), torch.zeros(4, 10))
    losses = cascade_losses(answers, targets, TASKS, HeadGroup(None, 0, 1))
    losses.total(TASKS).backward()
    assert float(losses.face) == float(losses.box) == 0
    assert not answers.grad[:, :5].any()
    assert answers.grad.isfinite().all()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("losses", "share", "chosen"),
    [
        ([0.1, 0.9, 0.5, 0.5], 0.5, [1, 2]),  # of equal ones the first
        ([0.1, 0.9, 0.5, 0.5], 1.0, [0, 1, 2, 3]),
        ([0.3, 0.2, 0.1], 0.1, [0]),  # at least one
        ([], 0.7, []),
    ],
)
def test_the_hardest_are_a_share_of_all(losses, share, chosen):
    assert hardest(torch.tensor(losses), share).nonzero()[:, 0].tolist() == chosen


@pytest.mark.unit
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("slope", [0.25, -0.5])
def test_networks_in_training_answer_as_they_do_afterwards_and_have_the_slopes_of_torch(window, slope):
    prelu = nn.PReLU(3, init=slope).double()
    maps = torch.randn(2, 3, 8, 10, dtype=torch.float64).requires_grad_()
    found = _activated(prelu, maps, window)
    assert torch.equal(found, _activated(prelu, maps.detach(), window))
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weights).sum(), [maps, prelu.weight])
    plain_found = torch.nn.functional.max_pool2d(prelu(maps), window, 2, ceil_mode=True)
    for mine, theirs in zip(
        gradients, torch.autograd.grad((plain_found * weights).sum(), [maps, prelu.weight]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
