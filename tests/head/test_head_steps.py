"""Several steps of the head, with accumulation, for every optimizer and store, against dense float64 optimizers.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.head import Head, HeadConfig
from tests.head.reference import solve
from tests.ranks import run_ranks

BATCH, DIM, CLASSES = 4, 16, 37
ACCUMULATED = [1, 3, 2]  # micro-batches of each step
LR = 0.3


def micro_batch(number: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    embeddings = torch.randn(BATCH * world_size, DIM, generator=generator) * 2
    labels = torch.randint(0, CLASSES // 2, (BATCH * world_size,), generator=generator)
    return embeddings, labels


def build(rank: int, world_size: int, settings: dict, directory: str) -> Head:
    config = HeadConfig(**settings, storage_dir=Path(directory))
    return Head(config, CLASSES, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"), seed=5)


def train(rank: int, world_size: int, settings: dict, directory: str, budget: int) -> dict:
    head = build(rank, world_size, settings, directory)
    head._softmax.budget = budget  # finer than the configuration's megabytes
    before = head.class_centers().clone().float().numpy()
    number, masks = 0, []
    for count in ACCUMULATED:
        for _ in range(count):
            embeddings, labels = micro_batch(number, world_size)
            mine = slice(rank * BATCH, (rank + 1) * BATCH)
            if number % 2:  # a store must give the same with and without prefetching
                head.prepare(labels[mine])
            (head(embeddings[mine].requires_grad_(), labels[mine]) / count).backward()
            classes = head._loss.micro_batches[-1].rows.classes
            masks.append(np.isin(np.arange(head.stop - head.start), np.arange(CLASSES) if classes is None else classes))
            number += 1
        head.step(LR)
    after = head.class_centers().clone().float().numpy()
    state = {name: table.clone().numpy() for name, table in head.tables().items() if name != "centers"}
    head.close()
    return {"before": before, "after": after, "masks": masks, "state": state}


def many_settings(rank: int, world_size: int, cases: list[dict], directory: str, budget: int) -> list[dict]:
    return [train(rank, world_size, case, f"{directory}/{i}", budget) for i, case in enumerate(cases)]


def expected(
    config: HeadConfig, before: torch.Tensor, masks: list[torch.Tensor], world_size: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rows after the steps, and the optimizer's state by the tables' names."""
    rows, number = before.double(), 0
    averages: dict[str, torch.Tensor] = {}
    first, second, updates = torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros(len(rows), 1, 1).double()
    counts = torch.ones(CLASSES)
    for count in ACCUMULATED:
        gradient, touched = torch.zeros_like(rows), torch.zeros(len(rows), dtype=torch.bool)
        for _ in range(count):
            embeddings, labels = micro_batch(number, world_size)
            answer = solve(config, rows, embeddings, labels, masks[number], 64.0, counts, averages=averages)
            gradient += answer.rows_grad / count
            touched |= masks[number]
            number += 1
        where = touched[:, None, None]
        updates = updates + where
        if config.optimizer == "sgd":
            decayed = gradient + config.weight_decay * rows
            first = torch.where(where, config.momentum * first + decayed, first)
            fresh = rows - LR * first
        elif config.optimizer == "rowwise_adagrad":
            second = torch.where(where, second + gradient.square().mean(dim=2, keepdim=True), second)
            fresh = rows * (1 - LR * config.weight_decay) - LR * gradient / (second.sqrt() + config.optimizer_eps)
        else:
            first = torch.where(where, config.beta1 * first + (1 - config.beta1) * gradient, first)
            second = torch.where(where, config.beta2 * second + (1 - config.beta2) * gradient.square(), second)
            mean, square = first / (1 - config.beta1**updates), second / (1 - config.beta2**updates)
            fresh = rows * (1 - LR * config.weight_decay) - LR * mean / (square.sqrt() + config.optimizer_eps)
        rows = torch.where(where, fresh, rows)
    if config.optimizer == "sgd":
        return rows, {"momentum": first} if config.momentum else {}
    return rows, {"squares": second[:, :, 0]} if config.optimizer == "rowwise_adagrad" else {
        "mean": first, "square": second, "updates": updates,
    }  # fmt: skip


OPTIMIZERS = [
    {"optimizer": "sgd", "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "rowwise_adagrad", "weight_decay": 0.1, "optimizer_eps": 1e-3},
    {"optimizer": "adamw", "weight_decay": 0.1, "optimizer_eps": 1e-3},
]
KINDS = [
    {"sample_rate": 0.4},
    {"block_rows": 3},
    {"storage": "host", "sample_rate": 0.4, "block_rows": 4},
    {"storage": "mmap", "sample_rate": 0.4, "centers_per_class": 2, "block_rows": 6},
    {"storage": "mmap"},
]
CASES = [optimizer | kind for optimizer in OPTIMIZERS for kind in KINDS]
LIFTED = [{"margin": "curricularface", "curricular_momentum": 0.3} | kind for kind in KINDS[:2]]
SMALL_BUDGET = 4 * BATCH * 2 * 2  # bytes: less than any block's logits


def check(ranks: list[list[dict]], cases: list[dict]) -> None:
    for number, settings in enumerate(cases):
        config = HeadConfig(**settings, storage_dir=Path())
        results = [rank[number] for rank in ranks]
        before = torch.from_numpy(np.concatenate([r["before"] for r in results]))
        after = torch.from_numpy(np.concatenate([r["after"] for r in results]))
        before = before.view(CLASSES, config.centers_per_class, DIM)
        masks = [torch.from_numpy(np.concatenate(m)) for m in zip(*(r["masks"] for r in results), strict=True)]
        rows, state = expected(config, before, masks, len(ranks))
        change = rows - before
        size = change.abs().max().item()
        got = (after.view_as(before) - before) / size
        # Adam divides by the root of squares: a gradient near zero shows its rounding.
        exact = 5e-4 if config.optimizer == "adamw" else 2e-5
        np.testing.assert_allclose(got, change / size, atol=exact, err_msg=str(settings))
        assert set(state) == set(results[0]["state"])
        for name, table in state.items():
            stored, size = np.concatenate([r["state"][name] for r in results]), table.abs().max().item()
            wanted = table.numpy().reshape(stored.shape) / size
            np.testing.assert_allclose(stored / size, wanted, atol=2e-5, err_msg=f"{settings}: {name}")


@pytest.mark.parametrize("world_size", [1, 3])
def test_accumulated_steps_agree_with_dense_optimizers_in_float64(world_size, tmp_path):
    check(run_ranks(world_size, many_settings, CASES, str(tmp_path), 2**20), CASES)


def test_logits_beyond_the_budget_are_formed_again(tmp_path):
    check(run_ranks(2, many_settings, CASES, str(tmp_path), SMALL_BUDGET), CASES)


def test_hard_negatives_whose_logits_are_formed_again_are_those_of_their_own_micro_batch(tmp_path):
    check([many_settings(0, 1, LIFTED, str(tmp_path), SMALL_BUDGET)], LIFTED)
