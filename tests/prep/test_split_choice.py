"""Who is held out, and which pairs are drawn: pure functions, against brute force."""

import itertools

import numpy as np
import pytest

from data_prep.split.choice import HeldOut, choose_heldout, new_labels, parse_wanted
from data_prep.split.pairs import draw_pairs


def hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 63, count, dtype=np.uint64)


@pytest.mark.parametrize(("text", "number"), [("10%", 100), ("0.25%", 2), ("99.9%", 999), ("37", 37)])
def test_a_share_is_of_the_identities_that_have_pictures(text, number):
    counts = np.array([3] * 1000 + [0] * 500)
    assert len(choose_heldout(counts, hashes(1500), parse_wanted(text), 1)) == number


def test_those_without_enough_pictures_are_never_held_out_and_empty_ones_are_in_no_part():
    counts = np.array([0, 1, 2, 3, 4, 1, 2, 5])
    heldout = choose_heldout(counts, hashes(8), parse_wanted("3"), 2)
    assert heldout.tolist() == [3, 4, 7]
    labels, is_held = new_labels(counts, heldout)
    assert labels.tolist() == [-1, 0, 1, 0, 1, 2, 3, 2]
    assert np.flatnonzero(is_held).tolist() == [3, 4, 7]


def test_the_earliest_pictures_are_the_gallerys_and_hashes_decide_between_equals():
    labels, times = np.array([1, 0, 1, 0, 1, 0]), np.array([5.0, 2, 4, 2, 4, 1])
    order = HeldOut.ordered(labels, times, np.array([0, 9, 8, 3, 7, 5], np.uint64), np.arange(6), 2)
    assert order.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert order.places.tolist() == [5, 3, 1, 4, 2, 0]
    assert order.in_gallery.tolist() == [True, True, False] * 2


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([2] * 30, 6000),
        ([200] + [2] * 25, 400),
        ([5, 4, 3], 60),
        ([2, 2], 6000),
        ([40] * 40, 6000),
        ([3, 100_000], 6000),
        ([7] * 19, 100),
    ],
)
def test_pairs_are_of_both_kinds_in_turn_never_twice_and_their_folds_keep_apart(sizes, wanted):
    whom = np.repeat(np.arange(len(sizes)), sizes)
    drawn = draw_pairs(np.array(sizes), hashes(len(sizes)), wanted, 0)
    left, right, same = drawn.left, drawn.right, drawn.same
    assert (whom[left] == whom[right]).tolist() == same.tolist() == [True, False] * (len(same) // 2)
    assert (left != right).all()
    assert len({frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}) == len(same)
    most = min(sum(n * (n - 1) // 2 for n in sizes), sum(a * b for a, b in itertools.combinations(sizes, 2)))
    assert 2 <= len(same) <= min(wanted, 2 * most)
    assert drawn.folded == (most >= 10)
    if drawn.folded:
        folds = [set(whom[np.concatenate([left[part], right[part]])]) for part in np.split(np.arange(len(same)), 10)]
        assert len(same) % 20 == 0
        assert drawn.disjoint == (sum(map(len, folds)) == len(set().union(*folds)) and len(sizes) >= 20)
    if not drawn.disjoint and drawn.folded:
        assert len(same) == min(wanted // 20, most // 10) * 20, "no more could be had"


def test_people_with_many_pictures_do_not_rule_the_pairs():
    sizes = np.array([300] + [10] * 39)
    drawn = draw_pairs(sizes, hashes(40), 400, 0)
    whom = np.repeat(np.arange(40), sizes)[drawn.left[drawn.same]]
    assert len(drawn.same) == 400
    assert np.bincount(whom, minlength=40).max() <= 5, "20 pairs of one person in a fold of four people"
