"""A further term of the loss is one class: here the mean squared norm of embeddings."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dist_train.config import load_config
from dist_train.train.build import build_recognition, open_training
from tests.launch.recipes import write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import losses, trainer


class SquaredNorm:
    """weight · mean of |embedding|² over the global batch."""

    def __init__(self):
        self.calls = []

    def prepare(self, batch):
        self.calls.append("prepare")

    def __call__(self, embeddings, batch):
        self.calls.append("call")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        share = embeddings.square().sum() / (ranks * len(embeddings))
        total = share.detach().clone()
        if ranks > 1:
            dist.all_reduce(total)
        self.mean = float(total)
        return share + (total - share.detach())  # the value of all ranks, the gradient of this one's samples

    def step(self, lr, *, measure):
        self.calls.append("step")

    def zero_grad(self):
        self.calls.append("zero_grad")

    def statistics(self):
        return {"mean": self.mean}

    def close(self):
        self.calls.append("close")


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


WEIGHT = 0.5


def loss_and_gradient(rank, world_size, recipe):
    """Of head and norm together, and of the head alone, for embeddings [B, D] drawn on each rank."""
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    build = partial(build_recognition, objectives={"norm": (WEIGHT, SquaredNorm())})
    loop = open_training(config, ranks_here(rank, world_size), build_program=build)
    batch = next(loop.loader)
    drawn = torch.randn(len(batch.labels), 16, generator=torch.Generator().manual_seed(rank))
    found = {"embeddings": drawn.numpy()}
    for name, loss in (("both", loop.program.loss), ("head", loop.program.head)):
        embeddings = drawn.clone().requires_grad_()
        value = loss(embeddings, batch)
        value.backward()
        found[name] = (float(value), embeddings.grad.numpy())
    loop.train_step(batch)
    found["figure"] = loop.program.figures()["norm/mean"]
    loop.close()
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_second_term_adds_its_weighted_formula_to_loss_and_gradient_on_any_number_of_ranks(
    tmp_path, tiny_set, world_size
):
    options = {"train__global_batch_size": 24, "train__micro_batch_size": 24 // world_size}
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", **options)
    several = world_size > 1
    ranks = run_ranks(world_size, loss_and_gradient, recipe) if several else [loss_and_gradient(0, 1, recipe)]
    embeddings = np.concatenate([found["embeddings"] for found in ranks]).astype(np.float64)
    assert len(embeddings) == 24
    value = WEIGHT * (embeddings**2).sum(axis=1).mean()
    for found, own in zip(ranks, np.split(embeddings, world_size), strict=True):
        (both, both_gradient), (head, head_gradient) = found["both"], found["head"]
        np.testing.assert_allclose(both - head, value, rtol=1e-5)
        np.testing.assert_allclose(both_gradient - head_gradient, WEIGHT * 2 * own / 24, atol=1e-6)
        assert found["figure"] == ranks[0]["figure"] > 0


def test_a_term_of_weight_0_changes_no_bit_of_a_run_and_another_weight_does(tmp_path, tiny_set):
    states, curves = [], []
    for number, weight in enumerate([None, 0.0, 0.5]):
        folder = tmp_path / str(number)
        folder.mkdir()
        objectives = None if weight is None else {"norm": (weight, SquaredNorm())}
        made = trainer(folder, tiny_set, program=partial(build_recognition, objectives=objectives))
        curves.append(losses(made, 3))
        states.append(made.program.backbone.state_dict())
        made.close()
    assert curves[0] == curves[1] != curves[2]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_a_term_is_prepared_before_each_forward_steps_once_forgets_a_refused_step_and_is_closed(tmp_path, tiny_set):
    term = SquaredNorm()
    made = trainer(tmp_path, tiny_set, program=partial(build_recognition, objectives={"norm": (1.0, term)}))
    losses(made, 1)
    assert term.calls == ["prepare", "call", "prepare", "call", "step"]
    term.calls.clear()
    batch = next(made.loader)
    batch.images[0] = float("nan")  # the head refuses the first micro-batch
    made.train_step(batch)
    assert term.calls == ["prepare", "zero_grad"]
    term.calls.clear()
    made.close()
    assert term.calls == ["close"]
