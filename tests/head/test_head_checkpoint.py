"""A head's state over `torch.distributed.checkpoint`, saved on some ranks and loaded on others.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from dist_train.errors import UserError
from dist_train.head import Head, HeadConfig
from tests.ranks import run_ranks

DIM = 8
CASES = [
    ({"margin": "curricularface", "optimizer": "adamw", "sample_rate": 0.5}, 11),
    ({"storage": "host", "centers_per_class": 2, "margin": "adaface"}, 11),
    ({"storage": "mmap", "dtype": "bfloat16"}, 11),
    ({"optimizer": "rowwise_adagrad", "margin": "softmax"}, 2),  # a rank without classes
]


def build(rank: int, world_size: int, settings: dict, classes: int, directory: str, seed: int) -> Head:
    config = HeadConfig(**settings, storage_dir=Path(directory) / f"store-{world_size}-{seed}")
    return Head(
        config, classes, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"), seed=seed
    )


def step(head: Head, rank: int, world_size: int, classes: int, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    embeddings = torch.randn(6, DIM, generator=generator) * 3
    labels = torch.randint(0, classes, (6,), generator=generator)
    mine = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    loss = head(embeddings[mine].requires_grad_(), labels[mine])
    loss.backward()
    head.step(0.2)
    return float(loss)


def local(state: dict) -> dict[str, np.ndarray]:
    plain = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in state.items()}
    return {name: value.float().numpy().copy() for name, value in plain.items()}


def save(rank: int, world_size: int, directory: str) -> list[dict]:
    states = []
    for number, (settings, classes) in enumerate(CASES):
        head = build(rank, world_size, settings, classes, f"{directory}/{number}", seed=1)
        for i in range(2):
            step(head, rank, world_size, classes, i)
        dcp.save({"head": head.state_dict()}, checkpoint_id=f"{directory}/{number}/saved-{world_size}")
        states.append(local(head.state_dict()))
        head.close()
    return states


def load(rank: int, world_size: int, directory: str, saved_by: int) -> list[dict]:
    states = []
    for number, (settings, classes) in enumerate(CASES):
        head = build(rank, world_size, settings, classes, f"{directory}/{number}", seed=2)
        step(head, rank, world_size, classes, 7)
        state = {"head": head.state_dict()}
        dcp.load(state, checkpoint_id=f"{directory}/{number}/saved-{saved_by}")
        head.load_state_dict(state["head"])
        states.append(local(head.state_dict()))
        step(head, rank, world_size, classes, 8)
        head.close()
    return states


def whole(ranks: list[list[dict]], number: int) -> dict[str, np.ndarray]:
    first = ranks[0][number]
    return {
        name: np.concatenate([rank[number][name] for rank in ranks]) if value.ndim == 2 else value
        for name, value in first.items()
    }


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(3, 1), (1, 2), (2, 3)])
def test_rows_and_optimizer_state_load_exactly_on_another_number_of_ranks(saved_by, loaded_by, tmp_path):
    saved = run_ranks(saved_by, save, str(tmp_path))
    loaded = run_ranks(loaded_by, load, str(tmp_path), saved_by)
    for number in range(len(CASES)):
        before, after = whole(saved, number), whole(loaded, number)
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=f"{CASES[number]} {name}")


def continued(rank: int, world_size: int, directory: str) -> tuple[list[float], list[float]]:
    settings = {"sample_rate": 0.5, "dtype": "bfloat16"}
    straight = build(rank, world_size, settings, 11, directory, seed=1)
    losses = [step(straight, rank, world_size, 11, i) for i in range(5)]
    first = build(rank, world_size, settings, 11, directory, seed=1)
    again = [step(first, rank, world_size, 11, i) for i in range(2)]
    second = build(rank, world_size, settings, 11, directory, seed=1)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    return losses, again + [step(second, rank, world_size, 11, i) for i in range(2, 5)]


def test_a_resumed_head_draws_rounds_and_learns_as_if_never_stopped(tmp_path):
    straight, resumed = run_ranks(2, continued, str(tmp_path))[0]
    assert straight == resumed


def test_a_state_of_another_kind_is_refused_by_name():
    head = build(0, 1, {"optimizer": "adamw"}, 5, "", seed=1)
    other = build(0, 1, {}, 5, "", seed=1)
    with pytest.raises(UserError, match=r"missing \['mean', 'square', 'updates'\], unknown \['momentum'\]"):
        head.load_state_dict(other.state_dict())
    smaller = build(0, 1, {"optimizer": "adamw"}, 4, "", seed=1)
    with pytest.raises(UserError, match=r"'centers': shape \[4, 8\], expected \[5, 8\]"):
        head.load_state_dict(smaller.state_dict())
