"""Groups at one threshold: counts against plain numpy, intervals and flags on planted sets, and the command."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.groups import evaluate_groups, group_values, judge_groups
from dist_train.evaluate.rates import Rate, adjusted, genuine_rate, gini
from dist_train.evaluate.scored_pairs import false_matches, genuine_pairs
from tests.evaluate.simulated import collapsed, simulated
from tests.ranks import ranks_here, run_ranks


def judged(rows, labels, groups, threshold, fmr=1e-3, names=("a", "b", "c", "d")):
    pairs = genuine_pairs(rows, labels), false_matches(rows, labels, threshold)
    return judge_groups(labels, groups, *pairs, threshold, names=names, title=("set", "column", fmr))


def plain_scores(rows, labels):
    """Cosines, truth and pictures of all pairs in float64, pair by pair of the upper triangle."""
    left, right = np.triu_indices(len(rows), 1)
    scores = (rows.double() @ rows.double().T).numpy()[left, right]
    return left, right, scores, (labels[left] == labels[right]).numpy()


def between(scores, rate):
    """A threshold in the middle between the two scores where the share at or above it is `rate`."""
    ranked = np.sort(scores)[::-1]
    place = int(rate * len(ranked))
    return float(ranked[place - 1 : place + 1].mean())


def test_counts_of_groups_and_pairs_of_groups_are_those_of_plain_numpy_on_3000_pictures():
    rows, labels, groups = simulated(1, identities=150, pictures=5)
    random = np.random.default_rng(0)
    groups = np.where(random.random(len(groups)) < 0.1, random.integers(0, 4, len(groups)), groups)  # mixed identities
    left, right, scores, same = plain_scores(rows, labels)
    threshold = between(scores[~same], 1e-3)
    result = judged(rows, labels, groups, threshold)
    both = 4 * np.minimum(groups[left], groups[right]) + np.maximum(groups[left], groups[right])
    kinds = (~same & (scores >= threshold), ~same, same & (scores < threshold), same)
    counts = [np.bincount(both[kind], minlength=16) for kind in kinds]
    for one, first in enumerate("abcd"):
        for other, second in list(enumerate("abcd"))[one:]:
            if one == other:
                fmr, fnmr = result.groups[one].fmr, result.groups[one].fnmr
            else:
                fmr, fnmr = result.across_fmr[first, second], result.across_fnmr[first, second]
            found = [fmr.errors, fmr.pairs, fnmr.errors, fnmr.pairs]
            assert found == [count[4 * one + other] for count in counts]
    assert (result.overall_fmr.errors, result.overall_fmr.pairs) == (int(1e-3 * (~same).sum()), int((~same).sum()))
    assert "have pictures of several groups" in result.notes[0]


def test_variances_are_those_of_the_plain_sums_over_identities_and_pairs_of_them():
    rows, labels, groups = simulated(2, groups=2, identities=9, pictures=4, dim=8)
    groups[::7] = 1 - groups[::7]  # identities of both groups
    left, right, scores, same = plain_scores(rows, labels)
    threshold = between(scores[~same], 0.05)
    result = judged(rows, labels, groups, threshold, names="ab")
    count = int(labels.max()) + 1
    for here, rate in (
        ((groups[left] == 0) & (groups[right] == 0), result.groups[0].fmr),
        (groups[left] != groups[right], result.across_fmr["a", "b"]),
    ):
        excess = np.zeros((count, count))  # of matches over the expected number, by both identities
        share = rate.errors / rate.pairs
        for i, j, score, one in zip(left[here], right[here], scores[here], same[here], strict=True):
            if not one:
                excess[labels[i], labels[j]] += (score >= threshold) - share
        excess += excess.T
        there = np.unique(labels[np.r_[left[here & ~same], right[here & ~same]]])
        single = (np.triu(excess) ** 2).sum()
        expected = max((excess.sum(axis=1) ** 2).sum() - single, single) / rate.pairs**2
        assert rate.variance == pytest.approx(expected * len(there) / (len(there) - 1), rel=1e-9)


def own_set(rows, labels, groups):
    """The set, with the groups as a column."""
    keys, columns = [str(number) for number in range(len(rows))], {"column": [f"g{group}" for group in groups]}
    return EmbeddedSet("set", Path("set"), rows, torch.ones(len(rows)), labels, keys, [None] * len(rows), columns)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_gives_a_model_of_one_embedding_no_credit(seed):
    _, labels, groups = simulated(0, groups=2, identities=20)
    found = evaluate_groups(own_set(collapsed(200, seed=seed), labels, groups), "column", 0.01)
    assert (found.overall_fmr.errors, found.overall_fnmr.share) == (0, 1)
    assert {group.fnmr.share for group in found.groups} == {1}


def test_a_rate_that_the_set_does_not_carry_is_noted():
    embedded = own_set(*simulated(6, groups=2, identities=20))
    told = "FMR 1e-05 needs 300,000 impostor pairs or more, and there are 19,500: take a larger --fmr"
    assert evaluate_groups(embedded, "column", 1e-5).summary()["notes"][0] == told
    assert not any("impostor pairs or more" in note for note in evaluate_groups(embedded, "column", 1e-3).notes)


def scored_on_rank(rank, world_size):
    rows, labels, _ = simulated(3, identities=140, pictures=4)  # 2,240 pictures: three blocks
    ranks = ranks_here(rank, world_size)
    return [np.stack(pairs) for pairs in (genuine_pairs(rows, labels, ranks), false_matches(rows, labels, 0.5, ranks))]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_find_the_pairs_that_one_finds(world_size):
    alone = scored_on_rank(0, 1)
    assert len(alone[1][0]) > 100
    for found in run_ranks(world_size, scored_on_rank):
        for mine, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(mine, expected)


def flags(seed, **planted):
    rows, labels, groups = simulated(seed, identities=20, **planted)
    impostors = plain_scores(rows, labels)
    result = judged(rows, labels, groups, between(impostors[2][~impostors[3]], 0.01), 0.01)
    return [group.worse_fmr for group in result.groups]


def test_a_planted_group_is_flagged_and_fair_ones_are_not():
    planted = np.array([flags(seed, planted=2) for seed in range(10)])
    assert planted[:, 2].sum() >= 9
    assert not np.delete(planted, 2, axis=1).any()
    assert np.array([flags(seed) for seed in range(10)]).any(axis=1).sum() <= 1


def test_an_interval_without_errors_counts_each_identity_once_and_never_leaves_0_to_1():
    none = genuine_rate(np.zeros(20), np.full(20, 10))
    assert none.interval == pytest.approx((0, 0.1611), abs=1e-4)  # Wilson's of 0 in 20
    every = genuine_rate(np.full(20, 10), np.full(20, 10))
    assert every.interval == pytest.approx((0.8389, 1), abs=1e-4)
    alike = genuine_rate(np.arange(20) % 2 * 10, np.full(20, 10))  # an identity's pairs all fail, or none does
    assert alike.interval == pytest.approx((0.2993, 0.7007), abs=0.01)  # Wilson's of 10 in 20
    assert all(np.isnan(Rate(0, 0, 0.0, 0).interval))


def test_gini_is_0_of_equal_rates_and_1_where_one_group_has_all_errors():
    assert gini([0.2, 0.2, 0.2]) == pytest.approx(0)
    assert gini([0, 0, 0.3]) == pytest.approx(1)
    assert gini([0, 0]) == 0
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_a_missing_value_is_a_group_of_its_own_that_is_not_compared():
    names, numbers = group_values(["m", None, "f", "", float("nan"), "m"], "sex", "set")
    assert (names, numbers.tolist()) == (["f", "m", "(none)"], [1, 2, 0, 2, 2, 1])
    rows, labels, _ = simulated(4, groups=3, identities=10)
    result = judged(rows, labels, np.repeat([0, 1, 2], 50), 0.5, names=["f", "m", "(none)"])
    assert result.groups[2].fmr_p is None
    assert result.groups[0].fmr_p is not None
    assert any("50 pictures have no value" in note for note in result.notes)


def test_a_group_of_one_identity_or_of_single_pictures_has_no_rate_and_says_so():
    rows, labels, _ = simulated(5, groups=1, identities=12, pictures=3)
    labels = torch.cat([labels[:33], torch.tensor([90, 91, 92])])
    groups = np.where(labels < 1, 0, np.where(labels >= 90, 1, 2))
    result = judged(rows, labels, groups, 0.5, names=["lone", "singles", "others"])
    assert np.isnan(result.groups[0].fmr.share)
    assert np.isnan(result.groups[1].fnmr.share)
    assert [note for note in result.notes if "has no" in note] == [
        "group lone has no impostor pair, and no FMR",
        "group singles has no genuine pair, and no FNMR",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, ""], "no picture has a value in 'age'"),
        ([str(number) for number in range(65)], "'age' has 65 values, expected at most 64 groups"),
        (["x", [1]], "'age' is a list in a sample"),
        (["x", "(none)"], "which stands for pictures without one"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused(values, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        group_values(values, "age", "set")
