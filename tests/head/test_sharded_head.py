"""One step of the sharded head on real ranks against one process in float64.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

import numpy as np
import pytest
import torch

from dist_train.head import Head, HeadConfig
from dist_train.head.margins.table import MARGINS as TABLE
from tests.head.reference import solve
from tests.ranks import run_ranks

BATCH, DIM = 6, 16
LOSS_WEIGHT = 8


def class_counts(classes: int) -> torch.Tensor:
    return torch.arange(classes) % 7 * 10 + 1


def batch(
    classes: int, world_size: int, spread: float = 3.0, samples: int = BATCH, dim: int = DIM
) -> tuple[torch.Tensor, torch.Tensor]:
    """A global batch with repeated labels, and none of the last rank's classes where there are several ranks."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(samples * world_size, dim, generator=generator) * spread
    top = classes if world_size == 1 else max(1, classes - classes // world_size - 1)
    labels = torch.randint(0, top, (samples * world_size,), generator=generator)
    labels[1:2] = labels[0]
    return embeddings, labels


def one_step(
    rank: int,
    world_size: int,
    settings: dict,
    classes: int,
    cast: torch.dtype = torch.float32,
    samples: int = BATCH,
    dim: int = DIM,
) -> dict:
    """One step of the head with `samples` of a rank; everything that is needed to check it."""
    head = Head(
        HeadConfig(**settings),
        classes,
        dim,
        group=None,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        seed=5,
        class_counts=class_counts(classes),
    )
    embeddings, labels = batch(classes, world_size, samples=samples, dim=dim)
    mine = slice(rank * samples, (rank + 1) * samples)
    local = embeddings[mine].to(cast).requires_grad_()
    before = head.class_centers().clone(), head.state_dict()["centers"]
    table = before[1] if world_size == 1 else before[1].to_local()
    start = table.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast != torch.float32):
        loss = head(local, labels[mine])
    (loss * LOSS_WEIGHT).backward()
    choice = head._loss.micro_batches[0].rows.classes
    head.step(0.5, measure=True)
    mask = np.ones(head.stop - head.start, dtype=bool)
    if choice is not None:
        mask[:] = False
        mask[choice] = True
    results = {
        "loss": float(loss),
        "losses": head.sample_losses.tolist(),
        "grad": local.grad.float().numpy() / LOSS_WEIGHT,
        "before": start.numpy(),
        "after": table.numpy().copy(),
        "chosen": mask,
        "scale": head.margin.scale,
        "statistics": head.statistics(),
    }
    head.close()
    return results


def many_cases(rank: int, world_size: int, cases: list[tuple]) -> list[dict]:
    return [one_step(rank, world_size, *case) for case in cases]


def check(
    results: list[dict],
    settings: dict,
    classes: int,
    cast: torch.dtype = torch.float32,
    samples: int = BATCH,
    dim: int = DIM,
) -> None:
    config = HeadConfig(**settings)
    embeddings, labels = batch(classes, len(results), samples=samples, dim=dim)
    rows = torch.from_numpy(np.concatenate([r["before"] for r in results])).view(classes, config.centers_per_class, -1)
    chosen = torch.from_numpy(np.concatenate([r["chosen"] for r in results]))
    answer = solve(config, rows, embeddings.to(cast), labels, chosen, results[0]["scale"], class_counts(classes))
    assert len({r["loss"] for r in results}) == 1
    assert all(r["losses"] == results[0]["losses"] for r in results)  # to the last bit
    np.testing.assert_allclose(results[0]["loss"], float(answer.loss), rtol=3e-6)
    grads = np.concatenate([r["grad"] for r in results])
    size = answer.embeddings_grad.abs().max().clamp_min(1e-30).item()  # 0 where there is one class
    exact = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[cast]  # what the gradient's type resolves
    np.testing.assert_allclose(grads / size, answer.embeddings_grad.numpy() / size, atol=exact)
    after = torch.from_numpy(np.concatenate([r["after"] for r in results])).view(rows.shape)
    change = -0.5 * (LOSS_WEIGHT * answer.rows_grad + config.weight_decay * rows.double())
    change = torch.where(chosen[:, None, None], change, 0.0)
    size = change.abs().max().item()
    np.testing.assert_allclose((after - rows) / size, change / size, atol=1e-5)
    assert torch.equal(after[~chosen], rows[~chosen])
    for rank in results:
        np.testing.assert_allclose(rank["statistics"]["gradient_norm"], change.norm() / 0.5, rtol=1e-4)


MARGINS = [
    {"margin": "softmax"},
    {"margin": "normface"},
    {"margin": "sphereface", "m1": 1.7},
    {"margin": "cosface"},
    {"margin": "arcface"},
    {"margin": "arcface", "m2": 1.2},
    {"margin": "arcface", "easy_margin": True},
    {"margin": "combined", "m1": 2.0, "scale": 32.0},
    {"margin": "adaface", "adaface": {"momentum": 0.5}},
    {"margin": "curricularface", "curricular_momentum": 0.0},
    {"margin": "magface", "magface": {"lower_norm": 11.0, "upper_norm": 14.0}},
    {"margin": "adaptive"},
]
SHAPES = [
    ({}, 53),
    ({"sample_rate": 0.3}, 53),
    ({"block_rows": 1, "sample_rate": 0.5}, 17),
    ({"block_rows": 7, "centers_per_class": 3}, 23),
    ({"block_rows": 5, "interclass_threshold": 0.2, "sample_rate": 0.6}, 31),
]
CASES: list[tuple] = [
    (margin | shape, classes, torch.float32)
    for margin in MARGINS
    for shape, classes in SHAPES
    if not (margin["margin"] == "softmax" and "interclass_threshold" in shape)
]
CASES += [({"margin": "arcface", "sample_rate": 0.4}, 53, cast) for cast in (torch.bfloat16, torch.float16)]
CASES += [({"margin": "arcface"}, 2, torch.float32)]  # fewer classes than three ranks
CASES += [({"margin": "arcface", "sample_rate": 0.01}, 61, torch.float32)]  # more positives than the sample


def test_every_margin_is_among_the_cases():
    assert {margin["margin"] for margin in MARGINS} == set(TABLE)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_one_step_agrees_with_the_plain_formula_in_float64(world_size):
    ranks = run_ranks(world_size, many_cases, CASES)
    for number, case in enumerate(CASES):
        try:
            check([rank[number] for rank in ranks], *case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


def test_rate_one_is_no_sampling():
    plain, rate = run_ranks(1, many_cases, [({}, 53, torch.float32), ({"sample_rate": 1.0}, 53, torch.float32)])[0]
    assert plain["loss"] == rate["loss"]
    np.testing.assert_array_equal(plain["after"], rate["after"])


def test_a_sample_takes_the_stated_share_of_each_rank():
    for rank in run_ranks(2, many_cases, [({"sample_rate": 0.5}, 80, torch.float32)]):
        assert rank[0]["chosen"].sum() == 20
        assert rank[0]["statistics"]["classes_sampled"] == 0.5
