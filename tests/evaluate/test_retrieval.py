"""Retrieval against scikit-learn, pytorch-metric-learning and the dense re-ranking; equal on 1, 2 and 3 ranks."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

from dist_train.errors import UserError
from dist_train.evaluate import rerank
from dist_train.evaluate.rerank import reranked
from dist_train.evaluate.retrieval import cosines, judge_retrieval, ordered
from tests.ranks import ranks_here, run_ranks


def drawn(pictures, identities, dim=5, seed=0):
    """Rows of small whole numbers [N, D], whose products are exact and often equal, and labels with one of nobody."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, identities, pictures)
    labels[0] = -1
    rows = random.integers(-2, 3, (identities, dim))[labels] + random.integers(-1, 2, (pictures, dim))
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels)


def unit(features):
    return torch.nn.functional.normalize(features + 0.1, dim=1)


def hardest_first(labels, gallery_labels):
    """A search as pytorch-metric-learning wants it: of equal scores the mates come last."""

    def search(query, k, reference, _):
        mates = (labels[:, None] == gallery_labels[None]).numpy()
        order = np.lexsort((mates, -(query @ reference.T).numpy()))[:, :k]
        return None, torch.from_numpy(order)

    return search


def test_figures_equal_scikit_learn_and_pytorch_metric_learning_among_many_ties():
    features, labels = drawn(2100, 40)
    probe = torch.arange(2100) < 100
    labels[1:4] = 40 + torch.arange(3)  # these have no mate
    judged = judge_retrieval(searches := ordered(features, labels, probe.tolist()), cosines(searches))
    assert int(judged.mated.sum()) == 96
    known = probe & (labels >= 0) & (labels < 40)
    near, far = labels[known], labels[~probe]
    scores = features[known] @ features[~probe].T
    assert len(scores.unique()) < 100, "scores are tied"
    precisions = [average_precision_score(label == far, row) for label, row in zip(near, scores, strict=True)]
    assert judged.figures.mean_ap == pytest.approx(np.mean(precisions), abs=1e-9)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), knn_func=hardest_first(near, far)
    )
    theirs = calculator.get_accuracy(features[known], near, features[~probe], far)
    assert judged.figures.recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert judged.figures.r_precision == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert judged.figures.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def plain(features, labels, groups=None):
    """Leave one out, in Python alone: R@k by k, mAP, mAP@R, R-precision, mINP."""
    firsts, figures = [], []
    for number, own in enumerate(labels):
        others = [other for other in range(len(labels)) if other != number]
        if groups is not None:
            others = [o for o in others if labels[o] != own or groups[o] != groups[number]]
        score = {other: float(features[number] @ features[other]) for other in others}
        ranked = sorted(others, key=lambda other: (-score[other], labels[other] == own))
        places = [place for place, other in enumerate(ranked, 1) if labels[other] == own]
        count = len(places)
        if own < 0 or not count:
            continue
        precision = []
        for place in places:
            level = [other for other in ranked if score[other] >= score[ranked[place - 1]]]
            precision.append(sum(labels[other] == own for other in level) / len(level))
        at_r = sum(i / place for i, place in enumerate(places, 1) if place <= count) / count
        inside = sum(place <= count for place in places) / count
        firsts.append(places[0])
        figures.append((np.mean(precision), at_r, inside, count / places[-1]))
    recall = {k: np.mean([first <= k for first in firsts]) for k in (1, 5, 10, 100, 1000) if k < len(labels)}
    return recall, np.mean(figures, axis=0)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_picture_among_all_others_equals_the_plain_formula(grouped):
    features, labels = drawn(140, 9, seed=1)
    groups = torch.arange(140) % 3 if grouped else None
    searches = ordered(features, labels, None, groups)
    found = judge_retrieval(searches, cosines(searches)).figures
    recall, (mean_ap, at_r, r_precision, minp) = plain(
        features.double().numpy(), labels.tolist(), None if groups is None else groups.tolist()
    )
    assert found.recall == pytest.approx(recall)
    assert (found.mean_ap, found.map_at_r, found.r_precision, found.minp) == pytest.approx(
        (mean_ap, at_r, r_precision, minp)
    )


def test_a_model_that_gives_every_picture_the_same_embedding_gets_no_credit():
    searches = ordered(unit(torch.ones(60, 8)), torch.arange(60) % 20)
    found = judge_retrieval(searches, cosines(searches)).figures
    assert (found.recall[1], found.map_at_r, found.r_precision) == (0, 0, 0)
    assert found.mean_ap == pytest.approx(2 / 59)
    assert found.minp == pytest.approx(2 / 59)


def dense(probes, gallery, itself):
    """Re-ranked distances [P, N] as the authors' code has them, with full matrices in float64."""
    together = gallery if itself else np.concatenate([gallery, probes])
    place = np.arange(len(probes)) + (0 if itself else len(gallery))
    distance = np.maximum(2 - 2 * together @ together.T, 0)
    np.fill_diagonal(distance, 0)
    distance /= distance.max(axis=1, keepdims=True)
    rank = np.argsort(distance, axis=1, kind="stable")
    half = int(np.around(rerank.K1 / 2))

    def mutual(i, k):
        return [j for j in rank[i, : k + 1] if i in rank[j, : k + 1]]

    v = np.zeros_like(distance)
    for i in range(len(together)):
        own = set(mutual(i, rerank.K1))
        wide = set(own)
        for j in own:
            further = mutual(j, half)
            if len(own & set(further)) > 2 / 3 * len(further):
                wide |= set(further)
        weight = np.exp(-distance[i, sorted(wide)])
        v[i, sorted(wide)] = weight / weight.sum()
    v = np.stack([v[rank[i, : rerank.K2]].mean(axis=0) for i in range(len(together))])
    least = np.array([[np.minimum(v[i], v[j]).sum() for j in range(len(gallery))] for i in place])
    jaccard = 1 - least / (2 - least)
    return (1 - rerank.LAMBDA) * jaccard + rerank.LAMBDA * distance[place][:, : len(gallery)]


def mixed(pictures, seed=2):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(pictures) % 8
    centres = torch.randn(8, 16, generator=random)
    rows = centres[labels] + 1.2 * torch.randn(pictures, 16, generator=random)
    return torch.nn.functional.normalize(rows, dim=1), labels


@pytest.mark.parametrize("roles", [True, False])
def test_re_ranking_equals_the_published_dense_formula(roles, monkeypatch):
    monkeypatch.setattr(rerank, "_BLOCK", 50)
    features, labels = mixed(130)
    searches = ordered(features, labels, (torch.arange(130) % 3 == 0).tolist() if roles else None)
    found = -torch.cat([reranked(searches)(slice(i, i + 30)) for i in range(0, len(searches.probes), 30)])
    gallery = searches.gallery.double().numpy()
    probes = searches.probes.double().numpy() if roles else gallery
    expected = dense(probes, gallery, not roles)
    if not roles:
        expected = expected[searches.itself.numpy()]
    assert np.abs(found.numpy() - expected).max() < 1e-5
    plainly, again = (judge_retrieval(searches, scores).figures for scores in (cosines(searches), reranked(searches)))
    assert again.mean_ap > plainly.mean_ap + 0.01


def test_too_many_pictures_are_not_re_ranked(monkeypatch):
    monkeypatch.setattr(rerank, "MOST_PICTURES", 100)
    with pytest.raises(UserError, match="101 pictures to re-rank, at most 100 are taken"):
        reranked(ordered(*mixed(101)))


def test_probes_without_any_mate_are_refused():
    searches = ordered(torch.eye(4), torch.arange(4))
    with pytest.raises(UserError, match="no probe has a mate"):
        judge_retrieval(searches, cosines(searches))


def judged_on(rank, world_size):
    features, labels = mixed(101)
    ranks = ranks_here(rank, world_size)
    searches = ordered(features, labels, (torch.arange(101) % 3 == 0).tolist(), torch.arange(101) % 5)
    both = [judge_retrieval(searches, scores, ranks) for scores in (cosines(searches), reranked(searches, ranks))]
    return [(each.figures.summary(), each.precision.tolist()) for each in both]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_judge_as_one_does(world_size):
    assert run_ranks(world_size, judged_on) == [judged_on(0, 1)] * world_size
