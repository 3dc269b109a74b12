"""The sharded head on real ranks against one process in float64.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

import numpy as np
import pytest
import torch

from dist_train.head import Head, HeadConfig
from tests.head.reference import solve
from tests.ranks import run_ranks

BATCH, DIM = 6, 16


def batch(classes: int, world_size: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A global batch with repeated labels, and none of the last rank's classes where there are several ranks."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(BATCH * world_size, DIM, generator=generator) * 3
    top = classes if world_size == 1 else max(1, classes - classes // world_size - 1)
    labels = torch.randint(0, top, (BATCH * world_size,), generator=generator)
    labels[1] = labels[0]
    return embeddings, labels


def one_step(rank: int, world_size: int, settings: dict, classes: int) -> dict:
    """One step of the head; everything the reference needs to check it."""
    config = HeadConfig(**settings)
    head = Head(config, classes, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"), seed=5)
    embeddings, labels = batch(classes, world_size)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    local = embeddings[mine].clone().requires_grad_()
    before = head._store.tables["centers"].clone()
    loss = head(local, labels[mine])
    loss.backward()
    chosen = head._pending[0].classes
    head.step(0.5)
    after = head._store.tables["centers"]
    head.close()
    mask = np.ones(head.stop - head.start, dtype=bool)
    if chosen is not None:
        mask[:] = False
        mask[chosen] = True
    return {
        "loss": float(loss),
        "grad": local.grad.numpy(),
        "before": before.float().numpy(),
        "after": after.float().numpy(),
        "chosen": mask,
        "scale": head.margin.scale,
        "statistics": head.statistics(),
    }


def many_steps(rank: int, world_size: int, cases: list[tuple[dict, int]]) -> list[dict]:
    return [one_step(rank, world_size, settings, classes) for settings, classes in cases]


def check(results: list[dict], settings: dict, classes: int) -> None:
    config = HeadConfig(**settings)
    world_size = len(results)
    embeddings, labels = batch(classes, world_size)
    k = config.centers_per_class
    before = torch.from_numpy(np.concatenate([r["before"] for r in results]))
    rows = before.view(classes, k, -1)
    chosen = torch.from_numpy(np.concatenate([r["chosen"] for r in results]))
    answer = solve(config, rows, embeddings, labels, chosen, results[0]["scale"])
    assert len({r["loss"] for r in results}) == 1
    np.testing.assert_allclose(results[0]["loss"], float(answer.loss), rtol=2e-6)
    grads = np.concatenate([r["grad"] for r in results])
    scale = answer.embeddings_grad.abs().max().item()
    np.testing.assert_allclose(grads / scale, answer.embeddings_grad.numpy() / scale, atol=5e-6)
    after = torch.from_numpy(np.concatenate([r["after"] for r in results])).view(classes, k, -1)
    expected = rows.double() - 0.5 * (answer.rows_grad + config.weight_decay * rows.double())
    expected = torch.where(chosen[:, None, None], expected, rows.double())
    step = (expected - rows).abs().max().item()
    np.testing.assert_allclose((after - rows) / step, (expected - rows) / step, atol=1e-5)
    assert torch.equal(after[~chosen], rows[~chosen])


CASES = [
    ({"margin": margin, **sampling, **block}, classes)
    for margin in ("arcface", "cosface", "normface", "softmax")
    for sampling in ({}, {"sample_rate": 0.3})
    for block, classes in (({}, 53), ({"block_rows": 1}, 10), ({"block_rows": 7, "centers_per_class": 3}, 23))
]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_one_step_agrees_with_the_plain_formula_in_float64(world_size):
    ranks = run_ranks(world_size, many_steps, CASES)
    for number, (settings, classes) in enumerate(CASES):
        check([rank[number] for rank in ranks], settings, classes)
