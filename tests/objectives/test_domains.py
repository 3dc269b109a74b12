"""Consistency of views and alignment of domains on real ranks against the plain formula in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dist_train.data.batch import Batch
from dist_train.data.config import DataConfig
from dist_train.errors import NonFiniteError, UserError
from dist_train.objectives import consistency, coral
from dist_train.objectives.config import ConsistencyConfig, CoralConfig, ObjectivesConfig
from dist_train.objectives.gathering import Gathering
from tests.ranks import ranks_here, run_ranks

SAMPLES, DIM = 4, 5
SOURCES = np.array([0, 1, 2, 0, 2, 2, 0, 1, 2, 2, 0, 0])  # set 2 has no labels; set 1 has one sample of a rank


def setting(rank, world_size, mix=2):
    sets = [{"path": "b", "weight": 1}, {"path": "c", "weight": 1, "labelled": False}][:mix]
    data = DataConfig.model_validate({"path": "a", "mix": sets})
    ranks = ranks_here(rank, world_size)
    return SimpleNamespace(config=SimpleNamespace(data=data), ranks=ranks, gathering=Gathering(ranks, data))


def views(rank):
    return torch.randn(2 * SAMPLES, DIM, generator=torch.Generator().manual_seed(rank)) * 3


def batch_of(rank, sources=SOURCES):
    source = torch.from_numpy(sources[rank * SAMPLES : (rank + 1) * SAMPLES])
    labels = torch.where(source == 2, -1, source)
    return Batch(torch.zeros(SAMPLES, 3, 2, 2), labels, labels, labels, source)


KINDS = {
    "all": lambda given: consistency.build(ConsistencyConfig(), given),
    "unlabelled": lambda given: consistency.build(ConsistencyConfig(samples="unlabelled"), given),
    "coral": lambda given: coral.build(CoralConfig(), given),
}


def measured(rank, world_size):
    found = {}
    for name, build in KINDS.items():
        term, batch = build(setting(rank, world_size)), batch_of(rank)
        embeddings = (views(rank) if name != "coral" else views(rank)[:SAMPLES]).requires_grad_()
        term.prepare(batch)
        value = term(embeddings, batch)
        value.backward()
        found[name] = float(value.detach()), embeddings.grad.numpy(), term.statistics()["loss"]
    return found


def plain_consistency(first, second, some):
    cosine = (first * second).sum(1) / first.norm(dim=1) / second.norm(dim=1)
    return (1 - cosine)[some].mean()


def plain_coral(every, sources):
    total = 0.0 * every.sum()
    for number in (1, 2):
        if min((sources == number).sum(), (sources == 0).sum()) > 1:
            one, other = (torch.cov(every[torch.from_numpy(sources == n)].T) for n in (0, number))
            total = total + (one - other).square().sum() / (4 * DIM**2)
    return total / 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_formula_over_the_global_batch(world_size):
    ranks = run_ranks(world_size, measured) if world_size > 1 else [measured(0, 1)]
    sources = SOURCES[: SAMPLES * world_size]
    drawn = [views(rank).double() for rank in range(world_size)]
    first = torch.cat([one[:SAMPLES] for one in drawn]).requires_grad_()
    second = torch.cat([one[SAMPLES:] for one in drawn]).requires_grad_()
    plain = {
        "all": plain_consistency(first, second, slice(None)),
        "unlabelled": plain_consistency(first, second, torch.from_numpy(sources == 2)),
        "coral": plain_coral(first, sources),
    }
    for name, value in plain.items():
        slopes = torch.autograd.grad(value, [first, second], allow_unused=True)
        for rank, found in enumerate(ranks):
            mine = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
            got, gradient, told = found[name]
            np.testing.assert_allclose([got, told], float(value), rtol=1e-5)
            expected = torch.cat([slope[mine] for slope in slopes if slope is not None])
            np.testing.assert_allclose(gradient, expected, atol=1e-6 * float(slopes[0].abs().max()) + 1e-7)


def test_micro_batches_without_the_samples_in_question_count_0_with_a_gradient_of_zeros():
    for name, sources in (
        ("unlabelled", np.zeros(4, int)),
        ("coral", np.array([0, 1, 1, 1])),
        ("coral", np.ones(4, int)),
    ):
        term, batch = KINDS[name](setting(0, 1)), batch_of(0, sources)
        embeddings = views(0)[: SAMPLES if name == "coral" else None].requires_grad_()
        value = term(embeddings, batch)
        value.backward()
        assert float(value) == 0
        assert not embeddings.grad.any()


def refused(rank, world_size):
    embeddings = views(rank)
    if rank == 1:
        embeddings[SAMPLES] = float("inf")  # of the second view, which no other term looks at
    with pytest.raises(NonFiniteError) as raised:
        KINDS["all"](setting(rank, world_size))(embeddings, batch_of(rank))
    return str(raised.value)


def test_a_second_view_that_is_not_finite_is_refused_on_all_ranks():
    said = run_ranks(2, refused)
    assert said[0] == said[1]
    assert "objectives.consistency: an embedding of some rank is not finite" in said[0]


def test_objectives_without_the_sets_that_they_need_are_refused():
    with pytest.raises(UserError, match=r"objectives.coral aligns data.path .* data.mix names none"):
        KINDS["coral"](setting(0, 1, mix=0))
    with pytest.raises(UserError, match="samples=unlabelled, but every set has labels"):
        KINDS["unlabelled"](setting(0, 1, mix=1))


def test_a_recipe_asks_for_two_views_exactly_where_an_objective_with_a_weight_needs_them():
    views = [ObjectivesConfig.model_validate(each).views for each in
             ({}, {"coral": {}}, {"consistency": {}}, {"consistency": {"weight": 0}})]  # fmt: skip
    assert views == [1, 1, 2, 1]
