from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.operating_points import FMRS, just_above, points_of
from dist_train.evaluate.pair_counts import count_pairs, order_by_identity
from dist_train.evaluate.thinned import Thinning
from tests.evaluate.pairs_problem import plain_places, plain_points, scores_of_pairs, tied_rows
from tests.ranks import ranks_here, run_ranks


def counted(features, labels, rank=0, world_size=1, block=2048):
    """Points, places in the set's order, and both samples."""
    ranks = ranks_here(rank, world_size)
    ordered = order_by_identity(features, labels, "made")
    counts = count_pairs(ordered, FMRS, ranks, block)
    places = np.zeros(len(labels), np.int64)
    places[ordered.order] = counts.places
    return points_of(ordered, counts, ranks), places, counts.genuine_sample, counts.impostor_sample


def test_points_over_all_pairs_of_3000_pictures_with_ties_are_those_of_brute_force_and_of_scikit_learn():
    features, labels = tied_rows(3000, 400)
    points, places, *_ = counted(features, labels)
    scores, same = scores_of_pairs(features, labels)
    rates, found, thresholds = roc_curve(same, scores, drop_intermediate=False)
    for point, plain in zip(points, plain_points(scores, same, FMRS), strict=True):
        assert (point.threshold, point.measured_fmr) == (just_above(plain.barred), plain.measured_fmr)
        assert point.fnmr == pytest.approx(plain.fnmr, abs=1e-15)
        last = np.flatnonzero(rates <= point.fmr)[-1]
        assert (rates[last], 1 - found[last]) == pytest.approx((point.measured_fmr, point.fnmr), abs=1e-12)
        assert thresholds[last] >= point.threshold
    assert (places == plain_places(features, labels)).all()
    assert [point.resolved for point in points] == [True] * 6


def test_scores_of_any_sign_and_nearness_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(300, 24, generator=generator), dim=1)
    features[:100] = features[:1] + 1e-3 * features[:100]  # near copies: thousands of scores within one prefix
    features[100:200] *= 1e-4  # near nought on both sides
    labels = torch.arange(300) % 50
    points, *_ = counted(features, labels)
    scores, same = scores_of_pairs(features, labels)
    for point, plain in zip(points, plain_points(scores, same, FMRS), strict=True):
        assert point.threshold == pytest.approx(plain.barred, abs=1e-6)
        assert (point.measured_fmr, point.fnmr) == pytest.approx((plain.measured_fmr, plain.fnmr), abs=2e-3)


def on_a_rank(rank, world_size, features, labels):
    return counted(torch.from_numpy(features), torch.from_numpy(labels), rank, world_size, block=64)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_blocks_and_the_draws_and_get_what_one_gets(world_size):
    features, labels = tied_rows(331, 40)
    features[5] = 0  # a picture that is like none
    labels[7] = -1
    points, places, *samples = counted(features, labels, block=64)
    for shared in run_ranks(world_size, on_a_rank, features.numpy(), labels.numpy()):
        assert shared[0] == points
        assert (shared[1] == places).all()
        for one, other in zip(samples, shared[2:], strict=True):
            assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_list_that_is_thinned_stands_for_all_pairs(monkeypatch):
    monkeypatch.setattr("dist_train.evaluate.pair_counts.Thinning", partial(Thinning, kept=500))
    features, labels = tied_rows(1000, 20)
    _, _, genuine, impostor = counted(features, labels)
    scores, same = scores_of_pairs(features, labels)
    assert len(genuine.scores) < same.sum() / 4
    assert len(impostor.scores) < (~same).sum() / 100
    for cut in (0.5, 0.75, 1.0):
        assert genuine.weights[genuine.scores <= cut].sum() == pytest.approx((scores[same] <= cut).sum(), rel=0.15)
        assert impostor.weights[impostor.scores >= cut].sum() == pytest.approx((scores[~same] >= cut).sum(), rel=0.15)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0] * 6, "made: 6 pictures with a label, of 1 identities; all pairs need two identities or more"),
        ([0, 1, 2, 3, 4, -1], "made: 5 pictures with a label, of 5 identities, one each; .* with two pictures"),
        ([-1] * 6, "made: 0 pictures with a label, of 0 identities"),
        ([0, 0, 1], "made: 3 labels for 6 pictures"),
    ],
)
def test_a_set_without_pairs_of_both_kinds_is_refused(labels, told):
    with pytest.raises(UserError, match=told):
        order_by_identity(torch.eye(6), torch.tensor(labels), "made")


def test_an_embedding_that_is_not_finite_is_named():
    features = torch.eye(6)
    features[4, 2] = torch.nan
    with pytest.raises(WorkError, match="made: the embedding of picture 4 is not finite"):
        order_by_identity(features, torch.tensor([0, 0, 1, 1, 2, 2]), "made")


def test_somebody_else_who_is_no_farther_below_the_mate_than_rounding_counts_as_better():
    angles = torch.acos(torch.tensor([1.0, 0.6, 0.6 - 1e-6], dtype=torch.float64))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1).float()
    counts = count_pairs(order_by_identity(rows, torch.tensor([0, 0, 1]), "three"), [0.1])
    assert counts.places.tolist() == [2, 2, 0]
