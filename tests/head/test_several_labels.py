"""Samples with several labels: one step of the sharded head on real ranks against one process in float64."""

import numpy as np
import pytest
import torch

from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.head import Head, HeadConfig
from dist_train.head.margins.table import MARGINS
from tests.head.reference import arc
from tests.head.test_sharded_head import BATCH, DIM, class_counts
from tests.ranks import run_ranks

CLASSES, MOST = 31, 4
CASES = [
    {"margin": "cosface"},
    {"margin": "arcface", "scale": 8.0, "sample_rate": 0.4, "block_rows": 7, "centers_per_class": 2},
    {"margin": "arcface", "scale": 30.0, "block_rows": 5, "sample_rate": 0.01},  # more positives than the sample
    {"margin": "cosface", "scale": 16.0, "filter_eps": 1e-12, "interclass_threshold": 0.2},
    {"margin": "cosface", "m3": 0.0, "scale": 16.0, "weighted": True},
]


def batch(world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [G, D] and labels [G, L]: one to four distinct ones a sample, -1 behind them."""
    random = np.random.default_rng(7)
    samples = BATCH * world_size
    embeddings = torch.from_numpy(random.standard_normal((samples, DIM), dtype=np.float32) * 3)
    labels = np.full((samples, MOST), -1)
    for row in range(samples):
        count = 1 + row % MOST
        labels[row, :count] = random.choice(CLASSES - 4, count, replace=False)  # none of the last classes
    return embeddings, torch.from_numpy(labels)


def weights_of(samples: int) -> torch.Tensor:
    """Uneven weights, 0 for the first sample of each rank, which then has no label."""
    weights = torch.linspace(0.02, 0.3, samples, dtype=torch.float64)
    weights[::BATCH] = 0
    return weights


def open_head(rank: int, world_size: int, settings: dict) -> Head:
    return Head(
        HeadConfig(**settings), CLASSES, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"),
        seed=5, class_counts=class_counts(CLASSES),
    )  # fmt: skip


def one_step(rank: int, world_size: int, settings: dict) -> dict:
    settings = dict(settings)
    weighted = settings.pop("weighted", False)
    head = open_head(rank, world_size, settings)
    if settings.get("scale") == 30.0:
        head._softmax.budget = 1  # exponentials are formed a second time
    embeddings, labels = batch(world_size)
    weights = weights_of(len(labels)) if weighted else None
    if weighted:
        labels[::BATCH] = -1
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    local = embeddings[mine].clone().requires_grad_()
    before = head.tables()["centers"].clone()
    head.prepare(labels[mine], weights)
    loss = head(local, labels[mine], weights)
    (loss * 8).backward()
    choice = head._loss.micro_batches[0].rows.classes
    chosen = np.ones(head.stop - head.start, dtype=bool)
    if choice is not None and "filter_eps" not in settings:
        chosen[:] = False
        chosen[choice] = True
    head.step(0.5)
    found = {
        "loss": float(loss.detach()),
        "grad": local.grad.numpy() / 8,
        "before": before.numpy(),
        "after": head.tables()["centers"].numpy().copy(),
        "chosen": chosen,
        "scale": head.margin.scale,
        "cosine": head.statistics()["target_cosine_mean"],
    }
    head.close()
    return found


def steps(rank: int, world_size: int) -> list[dict]:
    return [one_step(rank, world_size, case) for case in CASES]


def check(settings: dict, results: list[dict]) -> None:
    """Compare with log(1 + sum of exp(-positives)) + log(1 + sum of exp(negatives)) by autograd."""
    settings = dict(settings)
    weighted = settings.pop("weighted", False)
    config = HeadConfig(**settings)
    embeddings, labels = batch(len(results))
    embeddings = embeddings.double().requires_grad_()
    rows = torch.from_numpy(np.concatenate([each["before"] for each in results])).double().requires_grad_()
    chosen = torch.from_numpy(np.concatenate([each["chosen"] for each in results]))
    assert config.sample_rate == 1 or not chosen.all()
    centers = rows.view(CLASSES, config.centers_per_class, DIM)
    unit, centers = (each / each.norm(dim=-1, keepdim=True) for each in (embeddings, centers))
    cosines = torch.einsum("gd,ckd->gck", unit, centers).amax(dim=2)
    weights = weights_of(len(labels)) if weighted else torch.full((len(labels),), 1 / len(labels)).double()
    own = torch.zeros(len(labels), CLASSES + 1, dtype=torch.bool).scatter_(1, labels % (CLASSES + 1), True)[:, :-1]
    margin = cosines - (0.35 if config.m3 is None else config.m3) if config.margin == "cosface" else arc(cosines, 0.5)
    positives = (-results[0]["scale"] * margin).masked_fill(~own, -torch.inf)
    hidden = own | ~chosen
    if config.interclass_threshold is not None:
        hidden = hidden | (cosines > config.interclass_threshold)
    negatives = (results[0]["scale"] * cosines).masked_fill(hidden, -torch.inf)
    one = torch.zeros(len(labels), 1, dtype=torch.float64)
    losses = sum(torch.cat([one, each], dim=1).logsumexp(dim=1) for each in (positives, negatives))
    loss = (weights * losses).sum()
    loss.backward()
    assert len({each["loss"] for each in results}) == 1
    np.testing.assert_allclose(results[0]["loss"], loss.item(), rtol=3e-6)
    grads, size = np.concatenate([each["grad"] for each in results]), embeddings.grad.abs().max().item()
    np.testing.assert_allclose(grads / size, embeddings.grad.numpy() / size, atol=1e-5)
    wanted = -0.5 * (8 * rows.grad + config.weight_decay * rows.detach())
    wanted = torch.where(chosen.repeat_interleave(config.centers_per_class)[:, None], wanted.view(-1, DIM), 0)
    change = np.concatenate([each["after"] - each["before"] for each in results]).reshape(-1, DIM)
    size = wanted.abs().max().item()
    np.testing.assert_allclose(change / size, wanted.numpy() / size, atol=1e-5)
    counted = weights > 0
    means = (cosines * own).sum(dim=1) / own.sum(dim=1).clamp_min(1)
    np.testing.assert_allclose(results[0]["cosine"], means[counted].mean().item(), atol=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_one_step_with_several_labels_agrees_with_the_plain_formula_in_float64(world_size):
    ranks = run_ranks(world_size, steps) if world_size > 1 else [steps(0, 1)]
    for number, case in enumerate(CASES):
        check(case, [each[number] for each in ranks])


def bits_of(labels: torch.Tensor | Batch, settings: dict) -> list[bytes]:
    head = open_head(0, 1, settings)
    embeddings = batch(1)[0].requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.5)
    found = [each.detach().numpy().tobytes() for each in (loss, embeddings.grad, head.tables()["centers"])]
    head.close()
    return found


@pytest.mark.parametrize("margin", ["cosface", "adaface"])
def test_lists_of_one_label_give_the_bits_of_single_labels(margin):
    labels = batch(1)[1]
    settings = {"margin": margin, "sample_rate": 0.5}
    assert bits_of(labels[:, :1], settings) == bits_of(labels[:, 0], settings)
    nothing = torch.zeros(0)
    one = Batch(nothing, labels[:, 0], nothing, labels[:, 0], nothing)
    several = one._replace(several=labels)
    assert bits_of(one, settings) == bits_of(labels[:, 0], settings)
    if margin == "cosface":
        assert bits_of(several, settings) == bits_of(labels, settings) != bits_of(one, settings)


@pytest.mark.parametrize("margin", sorted(set(MARGINS) - {"arcface", "cosface"}))
def test_margins_that_take_one_label_refuse_several_by_name(margin):
    head = open_head(0, 1, {"margin": margin})
    with pytest.raises(UserError, match=f"head.margin={margin} takes one label .*that take several: cosface, arcface"):
        head(*batch(1))
    head.close()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([3, 3, -1, -1], r"labels \[3, 3, -1, -1\] at place 2 .*each at most once"),
        ([3, CLASSES, -1, -1], rf"labels \[3, {CLASSES}, -1, -1\] at place 2"),
        ([3, -2, -1, -1], "at place 2"),
        ([-1, 3, -1, -1], "at place 2"),
        ([-1] * 4, "at place 2"),
    ],
)
def test_labels_that_a_sample_cannot_have_are_refused(row, what):
    head = open_head(0, 1, {"margin": "cosface"})
    embeddings, labels = batch(1)
    labels[2] = torch.tensor(row)
    with pytest.raises(UserError, match=f"rank 0: .*{what}"):
        head(embeddings, labels)
    head.close()
