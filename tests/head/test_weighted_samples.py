"""A weighted loss of the sharded head on real ranks against one process in float64.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

import numpy as np
import pytest
import torch

from dist_train.errors import UserError
from dist_train.head import Head, HeadConfig
from tests.head.reference import solve
from tests.head.test_sharded_head import BATCH, DIM, batch, class_counts
from tests.ranks import run_ranks

CLASSES = 31
CASES = [
    {"margin": "softmax"},
    {"margin": "cosface", "filter_eps": 1e-12},
    {"margin": "arcface", "sample_rate": 0.4, "block_rows": 7, "centers_per_class": 2},
    {"margin": "arcface", "scale": 30.0, "block_rows": 5},  # whose exponentials are formed a second time
    {"margin": "arcface", "interclass_threshold": -0.99},
    {"margin": "adaface", "adaface": {"momentum": 0.5}},
    {"margin": "curricularface", "curricular_momentum": 0.0},
    {"margin": "magface", "magface": {"lower_norm": 11.0, "upper_norm": 14.0}},
    {"margin": "adaptive"},
]


def shares_of(samples: int) -> torch.Tensor:
    """Uneven weights, 0 for the last two samples of each rank, of which one has no label, and for one with a label."""
    weights = torch.linspace(0.02, 0.3, samples, dtype=torch.float64)
    weights[BATCH - 1 :: BATCH] = weights[BATCH - 2 :: BATCH] = 0
    weights[2] = 0
    return weights


def labelled(classes: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings, labels = batch(classes, world_size)
    labels[BATCH - 1 :: BATCH] = -1
    return embeddings, labels


def open_head(rank: int, world_size: int, settings: dict) -> Head:
    return Head(
        HeadConfig(**settings), CLASSES, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"),
        seed=5, class_counts=class_counts(CLASSES),
    )  # fmt: skip


def one_step(rank: int, world_size: int, settings: dict, equal: bool = False) -> dict:
    head = open_head(rank, world_size, settings)
    embeddings, labels = batch(CLASSES, world_size) if equal else labelled(CLASSES, world_size)
    weights = shares_of(len(labels))
    if equal:
        weights[:] = 1 / len(labels)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    local = embeddings[mine].clone().requires_grad_()
    start = head.tables()["centers"].clone()
    if settings.get("scale"):
        head._softmax.budget = 0
    head.prepare(labels[mine], weights)
    loss = head(local, labels[mine], weights)
    (loss * 3).backward()
    choice = head._loss.micro_batches[0].rows.classes
    head.step(0.5)
    mask = np.ones(head.stop - head.start, dtype=bool)
    if choice is not None:
        mask[:] = False
        mask[choice] = True
    found = {
        "loss": float(loss.detach()),
        "losses": head.sample_losses.numpy(),
        "grad": local.grad.numpy() / 3,
        "before": start.numpy(),
        "after": head.tables()["centers"].numpy().copy(),
        "chosen": mask,
        "scale": head.margin.scale,
    }
    head.close()
    return found


def many_cases(rank: int, world_size: int) -> list[dict]:
    return [one_step(rank, world_size, case) for case in CASES]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_weighted_step_agrees_with_the_plain_formula_in_float64(world_size):
    ranks = run_ranks(world_size, many_cases)
    embeddings, labels = labelled(CLASSES, world_size)
    weights = shares_of(len(labels))
    counted = weights > 0
    for number, settings in enumerate(CASES):
        config = HeadConfig(**settings)
        found = [rank[number] for rank in ranks]
        rows = torch.from_numpy(np.concatenate([one["before"] for one in found]))
        rows = rows.view(CLASSES, config.centers_per_class, -1)
        chosen = torch.from_numpy(np.concatenate([one["chosen"] for one in found]))
        answer = solve(
            config, rows, embeddings[counted], labels[counted], chosen | (config.filter_eps > 0), found[0]["scale"],
            class_counts(CLASSES), weights[counted],
        )  # fmt: skip
        np.testing.assert_allclose([one["loss"] for one in found], float(answer.loss), rtol=3e-6, err_msg=str(settings))
        grads = np.concatenate([one["grad"] for one in found])
        expected = torch.zeros_like(embeddings, dtype=torch.float64)
        expected[counted] = answer.embeddings_grad
        size = max(1e-6, expected.abs().max().item())
        np.testing.assert_allclose(grads / size, expected / size, atol=1e-5, err_msg=str(settings))
        assert not grads[~counted.numpy()].any(), "a sample of weight 0 has no gradient at all"
        assert not found[0]["losses"][~counted.numpy()].any()
        after = torch.from_numpy(np.concatenate([one["after"] for one in found])).view(rows.shape)
        change = -0.5 * (3 * answer.rows_grad + config.weight_decay * rows.double())
        change = torch.where(chosen[:, None, None], change, 0.0)
        # Where the gradient is 0 for all, decay alone moves rows, by less than their numbers resolve.
        size = max(change.abs().max().item(), 0.02 * rows.abs().max().item())
        np.testing.assert_allclose((after - rows) / size, change / size, atol=1e-5, err_msg=str(settings))


def test_equal_weights_give_the_mean_within_float_error():
    settings = {"margin": "magface", "sample_rate": 0.5}
    weighted = one_step(0, 1, settings, equal=True)
    head = open_head(0, 1, settings)
    embeddings, labels = batch(CLASSES, 1)
    local = embeddings.clone().requires_grad_()
    loss = head(local, labels)
    loss.backward()
    np.testing.assert_allclose(weighted["loss"], float(loss.detach()), rtol=1e-6)
    np.testing.assert_allclose(weighted["grad"], local.grad.numpy(), atol=1e-6 * float(local.grad.abs().max()))
    head.close()


@pytest.mark.parametrize("margin", ["adaface", "curricularface", "magface", "arcface"])
def test_a_batch_in_which_nothing_counts_has_loss_0_and_leaves_the_margins_averages(margin):
    head = open_head(0, 1, {"margin": margin})
    before = {name: value.clone() for name, value in head.margin.state().items()}
    embeddings = batch(CLASSES, 1)[0].requires_grad_()
    loss = head(embeddings, torch.full((BATCH,), -1), torch.zeros(BATCH))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not embeddings.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in head.margin.state().items())
    assert "target_cosine_mean" not in head.statistics()
    head.close()


def test_weights_and_labels_that_do_not_fit_are_refused():
    head = open_head(0, 1, {"margin": "arcface"})
    embeddings, labels = labelled(CLASSES, 1)
    weights = shares_of(BATCH)
    with pytest.raises(UserError, match="label -1 at place 5 of the batch"):
        head(embeddings, labels)
    with pytest.raises(UserError, match="label -1 at place 5 of the batch"):
        head.prepare(labels, weights + 1)
    with pytest.raises(UserError, match="label -2 at place 5"):
        head(embeddings, torch.where(labels == -1, -2, labels), weights)
    with pytest.raises(UserError, match=r"sample weights \[5\], expected \[6\]"):
        head(embeddings, labels, weights[1:])
    weights[1] = float("nan")
    with pytest.raises(UserError, match="weight nan of sample 1, expected a finite number"):
        head(embeddings, labels, weights)
    head.close()
