"""Spherical k-means over ranks, against the plain formula."""

import numpy as np
import pytest
import torch

from dist_train.cluster.kmeans import cluster_by_kmeans
from dist_train.errors import UserError
from dist_train.runtime.ranks import ALONE
from tests.cluster.simulated import simulate, unit
from tests.ranks import ranks_here, run_ranks

CUTS = {1: [0, 203], 2: [0, 150, 203], 3: [0, 0, 100, 203]}  # uneven, and a rank without any


def rows():
    return simulate(29, 7, 32, seed=5)[0]


def on_ranks(rank, world_size):
    low, high = CUTS[world_size][rank : rank + 2]
    part = torch.from_numpy(rows()[low:high])
    found = cluster_by_kmeans(part, 20, 7, ranks_here(rank, world_size), labels=3, quiet=True)
    return found.labels.numpy(), found.cosines.numpy()


def plain(every, clusters, seed):
    """The definition in float64, with its restarts of empty clusters."""
    every = every.astype(np.float64)
    centers = every[np.sort(np.random.default_rng(seed).choice(len(every), clusters, replace=False))]
    before = None
    while True:
        cosines = every @ centers.T
        found = cosines.argmax(axis=1)
        if before is not None and np.array_equal(found, before):
            return np.argsort(-cosines, axis=1)
        sizes = np.bincount(found, minlength=clusters)
        centers = np.array(
            [unit(every[found == k].sum(axis=0, keepdims=True))[0] if sizes[k] else centers[k] for k in range(clusters)]
        )
        own = np.where(sizes[found] == 1, np.inf, cosines.max(axis=1))
        empty = np.flatnonzero(sizes == 0)
        centers[empty] = every[np.argsort(own)[: len(empty)]]
        before = found


def test_any_number_of_ranks_finds_the_clusters_of_the_plain_formula():
    wanted = plain(rows(), 20, 7)
    for world_size in CUTS:
        parts = run_ranks(world_size, on_ranks) if world_size > 1 else [on_ranks(0, 1)]
        labels, cosines = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert np.array_equal(labels, wanted[:, :3])
        assert (np.diff(cosines, axis=1) <= 0).all()


def test_a_cluster_without_pictures_starts_again_from_the_farthest_picture():
    every = np.concatenate([np.ones((30, 3)), [[-1, 0.1, 0]], [[0, -1, 0.1]]])
    found = cluster_by_kmeans(torch.from_numpy(unit(every).astype(np.float32)), 3, 0, ALONE, quiet=True)
    labels = found.labels[:, 0].tolist()
    assert len({*labels[:30]}) == 1
    assert len({*labels}) == 3


def test_pictures_that_are_all_alike_are_in_one_cluster():
    found = cluster_by_kmeans(torch.nn.functional.normalize(torch.ones(20, 4), dim=1), 5, 0, ALONE, quiet=True)
    assert len(found.labels.unique()) == 1


@pytest.mark.parametrize(("clusters", "labels"), [(5, 1), (2, 3)])
def test_more_clusters_than_pictures_or_labels_than_clusters_are_refused(clusters, labels):
    with pytest.raises(UserError, match=f"4 pictures, {clusters} clusters, {labels} labels a picture; expected labels"):
        cluster_by_kmeans(torch.eye(4), clusters, 0, ALONE, labels, quiet=True)
