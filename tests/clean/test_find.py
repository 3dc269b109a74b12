"""What is found in embeddings, against plain formulas and on faults that are known."""

import numpy as np
import pytest
import torch

from dist_train.clean import neighbours
from dist_train.clean.cores import find_cores
from dist_train.clean.duplicates import Pairs, near_pairs, to_leave_out
from dist_train.clean.merges import find_merges, joined
from dist_train.clean.mixture import mixture
from dist_train.clean.outliers import Akin, find_outliers
from dist_train.runtime.ranks import ALONE
from tests.clean.sets import people
from tests.ranks import ranks_here, run_ranks


def test_the_mixture_finds_how_many_are_of_a_kind_and_keeps_the_certainty_that_is_asked():
    random = np.random.default_rng(0)
    kind, others = random.normal(-3, 1, 2000), random.normal(0, 1, 18_000)
    observed = np.concatenate([kind, others]).astype(np.float32)
    found = mixture(observed, random.normal(-3, 1, 5000).astype(np.float32), 0.95)
    assert found.expected == pytest.approx(2000, rel=0.1)
    chosen = observed <= found.cut
    assert chosen[:2000].sum() / chosen.sum() == pytest.approx(0.95, abs=0.03)
    assert (found.certainty[chosen] >= 0.95).all()
    assert mixture(others.astype(np.float32) + 9, kind.astype(np.float32), 0.95).cut == -np.inf


def test_few_findings_are_never_certain_and_no_surer_than_what_was_counted():
    random = np.random.default_rng(0)
    known = random.normal(0, 1, 600).astype(np.float32)
    alone = mixture(np.array([-2.0, 9, 9, 9], np.float32), known, 0.97)
    assert alone.certainty[0] <= 0.5
    shares = []
    for _ in range(50):  # 25 of the kind, and look-alikes that come near to them
        kind, others = random.normal(0, 1, 25), random.normal(3, 0.8, 200)
        found = mixture(np.concatenate([kind, others]).astype(np.float32), known, 0.97)
        chosen = np.concatenate([kind, others]) <= found.cut
        if chosen.any():
            shares.append([chosen[:25].sum() / chosen.sum(), found.certainty[chosen].min(), found.certainty.max()])
    right, said, most = np.mean(shares, axis=0)
    assert said <= right + 0.03
    assert most < 0.97


def test_own_cosines_are_those_to_the_weighted_mean_of_the_others():
    features, labels = people(4, 5)
    cores = find_cores(features, labels, 5)
    rows, weights = features.double().numpy(), np.ones(20)
    for _ in range(6):
        own = np.empty(20)
        for i in range(20):
            others = (labels.numpy() == int(labels[i])) & (np.arange(20) != i)
            mean = (weights[others, None] * rows[others]).sum(axis=0)
            own[i] = rows[i] @ mean / np.linalg.norm(mean)
        weights = np.maximum(own, 0) ** 4
    np.testing.assert_allclose(cores.own.numpy(), own, atol=1e-5)
    assert cores.counts.tolist() == [5, 5, 5, 5, 0]


def test_the_center_of_an_identity_is_its_majority_s_though_two_fifths_are_one_other_person():
    features, _ = people(2, 60, spread=0.3)
    chosen = torch.cat([torch.arange(30), torch.arange(60, 80)])
    cores = find_cores(features[chosen], torch.zeros(50, dtype=torch.int64), 1)
    assert cores.own[:30].min() > 0.6
    assert cores.weights[30:].sum() < 0.05 * cores.weights[:30].sum()


def faulty() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """60 people: 40 pictures have another's label, person 0 to 4 are split in two (labels 60 to 64)."""
    features, shown = people(60, 12, seed=3)
    random = np.random.default_rng(1)
    labels = shown.clone()
    for person in range(5):
        labels[(shown == person).nonzero().squeeze(1)[6:]] = 60 + person
    wrong = np.sort(random.choice(np.arange(120, len(shown)), 40, replace=False))
    labels[wrong] = (labels[wrong] + torch.from_numpy(random.integers(1, 40, 40))) % 50 + 5
    wrong = wrong[(labels != shown)[wrong].numpy()]
    return features, labels, wrong


def look(rank: int, world_size: int) -> tuple[np.ndarray, ...]:
    ranks = ranks_here(rank, world_size) if world_size > 1 else ALONE
    features, labels, _ = faulty()
    cores = find_cores(features, labels, 65)
    merges = find_merges(features, cores, 0.95, None, ranks)
    pairs = merges.pairs[merges.found]
    akin = Akin(merges.pairs[merges.distance <= merges.possible], joined(pairs, 65))
    outliers = find_outliers(features, cores, akin, 0.95, None, ranks)
    near = near_pairs(features, cores, joined(pairs, 65), outliers, 0.97, ranks)
    return np.sort(pairs, axis=1), outliers.rows[outliers.found], near.rows, near.cosine


def test_wrong_labels_and_split_identities_are_found_and_little_else():
    _, _, wrong = faulty()
    pairs, outliers, _, _ = look(0, 1)
    assert {tuple(pair) for pair in pairs.tolist()} <= {(person, 60 + person) for person in range(5)}
    assert len(pairs) >= 4
    assert len(np.intersect1d(outliers, wrong)) >= 0.9 * len(wrong)
    assert np.isin(outliers, wrong).mean() >= 0.95


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_finds_the_same(world_size):
    alone = look(0, 1)
    for found in run_ranks(world_size, look):
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_set_without_faults_has_no_findings():
    features, labels = people(60, 12, spread=0.3)
    cores = find_cores(features, labels, 60)
    merges = find_merges(features, cores, 0.95, None, ALONE)
    outliers = find_outliers(features, cores, Akin(merges.pairs[:0], np.arange(60)), 0.95, None, ALONE)
    assert len(merges.found) == len(outliers.found) == 0


def test_identities_of_one_and_of_two_pictures_do_not_break_and_lose_at_most_half():
    features, labels = people(30, 2)
    labels[3] = 29
    labels = torch.cat([labels, torch.tensor([30])])
    features = torch.cat([features, -features[:1]])
    cores = find_cores(features, labels, 31)
    merges = find_merges(features, cores, 0.95, None, ALONE)
    outliers = find_outliers(features, cores, Akin(merges.pairs[:0], np.arange(31)), 0.5, 2.0, ALONE)
    lost = np.bincount(labels.numpy()[outliers.rows[outliers.found]], minlength=31)
    assert (lost <= cores.counts.numpy() // 2).all()


def test_all_near_pairs_of_an_identity_are_found_in_blocks_of_any_size(monkeypatch):
    features, labels = people(7, 9)
    features[40] = features[38]
    cosines = (features @ features.T).numpy()
    wanted = {(i, j) for i in range(63) for j in range(i + 1, 63) if labels[i] == labels[j] and cosines[i, j] >= 0.85}
    cores = find_cores(features, labels, 7)
    outliers = find_outliers(features, cores, Akin(np.empty((0, 2), np.int64), np.arange(7)), 0.95, -9.0, ALONE)
    monkeypatch.setattr("dist_train.clean.duplicates._ROWS", 5)
    found = near_pairs(features, cores, np.arange(7), outliers, 0.85, ALONE)
    same = labels.numpy()[found.rows[:, 0]] == labels.numpy()[found.rows[:, 1]]
    assert {tuple(pair) for pair in found.rows[same].tolist()} == wanted
    assert (38, 40) in wanted


def test_of_pictures_that_are_the_same_one_stays():
    pairs = Pairs(np.array([[1, 4], [4, 6], [2, 3]]), np.array([0.99, 0.98, 0.97], np.float32), np.ones(3, np.float32))
    going, staying, _ = to_leave_out(pairs, np.array([0, 0.1, 0.5, 0.6, 0.9, 0, 0.2], np.float32))
    assert dict(zip(going.tolist(), staying.tolist(), strict=True)) == {1: 4, 6: 4, 2: 3}


def test_labels_that_are_one_through_others_have_one_root():
    assert joined(np.array([[4, 2], [5, 4], [1, 0]]), 7).tolist() == [0, 0, 2, 3, 2, 2, 6]


def test_faiss_finds_the_neighbours_that_the_exact_search_finds(monkeypatch):
    features, _ = people(400, 6)
    wanted, exact = neighbours.nearest_rows(features, features, 5, ALONE)
    monkeypatch.setattr(neighbours, "FAISS_ROWS", 10)
    monkeypatch.setattr(neighbours, "nearest", None)
    scores, rows = neighbours.nearest_rows(features, features, 5, ALONE)
    assert rows[:, 0].tolist() == list(range(2400))
    assert (rows == exact).float().mean() > 0.95
    assert torch.allclose(scores[:, 0], wanted[:, 0], atol=1e-5)


def test_without_faiss_a_large_search_stays_exact_and_says_how_to_get_it(monkeypatch, caplog):
    features, _ = people(5, 4)
    monkeypatch.setattr(neighbours, "FAISS_ROWS", 10)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, rows = neighbours.nearest_rows(features, features, 2, ALONE)
    assert rows[:, 0].tolist() == list(range(20))
    assert "headcount[faiss]" in caplog.text
