"""The embeddings of all ranks, brought together once for all objectives."""

import numpy as np
import pytest
import torch

from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError
from dist_train.objectives.gathering import Gathering
from tests.ranks import ranks_here, run_ranks

SAMPLES = 3  # of a rank


def batch_of(rank):
    labels = torch.arange(SAMPLES) + 10 * rank
    sources = torch.full((SAMPLES,), rank)
    return Batch(torch.zeros(SAMPLES, 3, 2, 2), labels, labels, labels, sources)


def gathered(rank, world_size):
    """What a rank sees, and the gradient of a loss that pairs every sample with every other one."""
    gathering, batch = Gathering(ranks_here(rank, world_size)), batch_of(rank)
    embeddings = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    first, again = gathering(embeddings, batch), gathering(embeddings, batch)
    (first.embeddings @ again.embeddings.T).exp().sum().backward()
    return {
        "once": first is again,
        "own": embeddings.detach().numpy(),
        "every": first.embeddings.detach().numpy(),
        "labels": first.labels.tolist(),
        "sources": first.sources.tolist(),
        "slice": first.own,
        "gradient": embeddings.grad.numpy(),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_sees_all_samples_in_order_and_keeps_its_own_part_of_the_gradient(world_size):
    ranks = run_ranks(world_size, gathered) if world_size > 1 else [gathered(0, 1)]
    every = torch.tensor(np.concatenate([found["own"] for found in ranks]).astype(np.float64), requires_grad=True)
    (every @ every.T).exp().sum().backward()
    for rank, found in enumerate(ranks):
        assert found["once"], "two terms share one exchange"
        np.testing.assert_array_equal(found["every"], every.detach().numpy().astype(np.float32))
        assert found["labels"] == [place + 10 * other for other in range(world_size) for place in range(SAMPLES)]
        assert found["sources"] == [other for other in range(world_size) for _ in range(SAMPLES)]
        assert found["slice"] == slice(SAMPLES * rank, SAMPLES * (rank + 1))
        np.testing.assert_allclose(found["gradient"], every.grad.numpy()[found["slice"]], rtol=2e-5)


def refusal(rank, world_size):
    embeddings = torch.ones(SAMPLES, 4)
    if rank == 1:
        embeddings[2, 0] = float("inf")
    with pytest.raises(NonFiniteError) as raised:
        Gathering(ranks_here(rank, world_size))(embeddings, batch_of(rank))
    return str(raised.value)


def test_an_embedding_that_is_not_finite_is_refused_on_all_ranks_and_named():
    for said in run_ranks(2, refusal):
        assert said.startswith("rank 1: embedding 2 of the batch is not finite (1 of 6 over all ranks)")
