"""Clusters by a graph of near neighbours, against plain formulas."""

import numpy as np
import pytest
import torch

from dist_train.cluster import graph, neighbours
from dist_train.cluster.components import best_links, roots_of
from dist_train.cluster.graph import cluster_by_graph, first_seen
from dist_train.cluster.neighbours import near_rows
from dist_train.errors import WorkError
from dist_train.evaluate import search
from dist_train.runtime.ranks import ALONE
from tests.cluster.simulated import pairwise_f, simulate, unit
from tests.ranks import ranks_here, run_ranks

THRESHOLD = 0.35


def clustered(rows, threshold=THRESHOLD):
    return cluster_by_graph(torch.from_numpy(rows), threshold, ALONE, quiet=True)


def mean_cosines(rows, labels):
    """Mean cosine over all pairs of pictures of each two clusters, by the plain formula; -1 on the diagonal."""
    members = np.eye(labels.max() + 1)[labels]  # [N, K]
    wide = rows.astype(np.float64)
    sizes = members.sum(axis=0)
    out = members.T @ (wide @ wide.T) @ members / np.outer(sizes, sizes)
    np.fill_diagonal(out, -1)
    return out


@pytest.mark.parametrize("held", [1 << 20, 100])
def test_rows_above_a_threshold_are_those_that_a_sort_of_all_finds(held, monkeypatch):
    monkeypatch.setattr(search, "CPU_GALLERY_BLOCK", 64)
    monkeypatch.setattr(neighbours, "_MOST_HELD", held)
    rows = unit(np.random.default_rng(1).standard_normal((300, 8))).astype(np.float32)
    own, others, products = near_rows(torch.from_numpy(rows[:90]), torch.from_numpy(rows), 5, 0.8)
    every = rows[:90] @ rows.T
    order = np.argsort(-every, axis=1, kind="stable")[:, :5]
    wanted = [(row, other) for row in range(90) for other in order[row] if every[row, other] >= 0.8]
    assert list(zip(own.tolist(), others.tolist(), strict=True)) == wanted
    assert len(wanted) < 90 * 5, "some have fewer than five"
    assert np.allclose(products.numpy(), [every[pair] for pair in wanted], atol=1e-6)


def test_links_to_the_heaviest_edges_lead_to_one_node_of_each_component():
    left, right = np.array([0, 1, 3, 4, 5]), np.array([1, 2, 4, 5, 3])
    links = best_links(left, right, np.array([0.9, 0.8, 0.5, 0.5, 0.5], np.float32), 7)
    assert links.tolist() == [1, 0, 1, 5, 5, 3, 6], "of equal edges the later one"
    assert roots_of(links).tolist() == [0, 0, 0, 3, 3, 3, 6]


def test_clusters_are_numbered_by_their_first_pictures():
    assert first_seen(np.array([7, 2, 7, 9, 2])).tolist() == [0, 1, 0, 2, 1]


def test_simulated_identities_are_found_and_no_two_clusters_are_left_that_belong_together():
    rows, labels = simulate(60, 20, 128)
    found = clustered(rows)
    assert pairwise_f(found, labels) > 0.99
    assert mean_cosines(rows, found).max() < THRESHOLD


def test_one_pair_of_pictures_above_the_threshold_joins_no_two_identities():
    random = np.random.default_rng(2)
    centers = np.eye(8)[:2]
    rows = unit(np.repeat(centers, 15, axis=0) + random.normal(0, 0.05, (30, 8)))
    rows = np.concatenate([rows, unit(centers.sum(axis=0, keepdims=True))]).astype(np.float32)
    found = clustered(rows, 0.6)
    assert rows[0] @ rows[-1] > 0.6, "the last picture is near to both"
    assert rows[29] @ rows[-1] > 0.6
    assert np.unique(found[:15]).tolist() == [0]
    assert np.unique(found[15:30]).tolist() == [1]


def test_an_identity_of_more_copies_than_neighbours_is_joined_by_a_further_search(monkeypatch):
    monkeypatch.setattr(graph, "NEIGHBOURS", 3)
    random = np.random.default_rng(3)
    scenes = unit(np.array([[1, 0.5, 0, 0], [1, -0.5, 0, 0], [0, 0, 1, 0]]))
    rows = unit(np.repeat(scenes, 10, axis=0) + random.normal(0, 1e-3, (30, 4))).astype(np.float32)
    assert clustered(rows, 0.5).tolist() == [0] * 20 + [1] * 10


@pytest.mark.parametrize(
    ("rows", "wanted"), [(np.ones((1, 4)), [0]), (np.ones((300, 4)), [0] * 300), (np.eye(4), [0, 1, 2, 3])]
)
def test_one_picture_and_pictures_that_are_all_alike_or_all_apart_are_clustered(rows, wanted):
    assert clustered(unit(rows).astype(np.float32), 0.5).tolist() == wanted


def on_ranks(rank, world_size):
    rows, _ = simulate(11, 9, 32, seed=4)
    return cluster_by_graph(torch.from_numpy(rows), THRESHOLD, ranks_here(rank, world_size), quiet=True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_share_the_search_find_the_same_clusters(world_size):
    alone = on_ranks(0, 1)
    assert alone.max() < 20
    for found in run_ranks(world_size, on_ranks):
        assert np.array_equal(found, alone)


def test_a_stopped_search_goes_on_with_the_first_block_that_is_not_there(tmp_path, monkeypatch):
    rows = torch.from_numpy(simulate(40, 5, 32, seed=3)[0])
    monkeypatch.setattr(graph, "QUERY_BLOCK", 32)
    whole = cluster_by_graph(rows, THRESHOLD, ALONE, quiet=True)
    calls = []

    def counted(queries, gallery, *options, stop_at=None):
        if len(calls) == stop_at:
            raise WorkError("stopped")
        calls.append(len(gallery))
        return near_rows(queries, gallery, *options)

    monkeypatch.setattr(graph, "near_rows", lambda *given: counted(*given, stop_at=3))
    with pytest.raises(WorkError):
        cluster_by_graph(rows, THRESHOLD, ALONE, quiet=True, keep=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3

    def goes_on(features=rows):
        calls.clear()
        monkeypatch.setattr(graph, "near_rows", counted)
        labels = cluster_by_graph(features, THRESHOLD, ALONE, quiet=True, keep=tmp_path)
        return labels, calls.count(len(rows))

    labels, searched = goes_on()
    np.testing.assert_array_equal(labels, whole)
    assert searched == 7 - 3
    damaged = folder / "000001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    np.savez(folder / "000002.npz", pairs=np.array([len(rows) ** 2]), cosines=np.ones(1, np.float32))
    labels, searched = goes_on()
    np.testing.assert_array_equal(labels, whole)
    assert searched == 2
    other = rows.flip(0)
    labels, searched = goes_on(other)
    np.testing.assert_array_equal(labels, cluster_by_graph(other, THRESHOLD, ALONE, quiet=True))
    assert searched == 7
    assert not folder.exists()
