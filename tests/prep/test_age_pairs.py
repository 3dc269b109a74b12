"""Pairs of pictures many years apart, compared with a plain list of all pairs."""

from itertools import combinations

import numpy as np

from data_prep.layouts.age_pairs import Aged, pairs_by_age
from dist_train.data.pair_list import Pair


def people(count, views, seed=0):
    random = np.random.default_rng(seed)
    return [Aged(f"{n}_{v}.jpg", f"p{n}", int(random.integers(5, 80))) for n in range(count) for v in range(views)]


def folds_of(pairs):
    size = len(pairs) // 10
    assert size * 10 == len(pairs)
    return [pairs[at : at + size] for at in range(0, len(pairs), size)]


def test_folds_have_equal_numbers_of_both_kinds_that_far_apart_and_no_person_in_common():
    pictures = people(60, 12)
    known = {each.path: each for each in pictures}
    pairs = pairs_by_age(pictures, of_a_kind=20)
    assert len(pairs) == len({frozenset(pair[:2]) for pair in pairs}) == 400
    seen = []
    for fold in folds_of(pairs):
        assert [pair.same for pair in fold] == [True] * 20 + [False] * 20
        for pair in fold:
            left, right = known[pair.left], known[pair.right]
            assert (left.person == right.person) == pair.same
            assert right.age - left.age >= 30
        seen.append({known[path].person for pair in fold for path in pair[:2]})
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_the_poorest_fold_gives_all_that_it_has_and_the_others_as_many():
    pictures = people(20, 4, seed=3)
    known = {each.path: each for each in pictures}
    pairs, available = pairs_by_age(pictures), []
    for fold in folds_of(pairs):
        persons = {known[path].person for pair in fold for path in pair[:2]}
        assert len(persons) == 2, "a pair of two people shows both of the fold's"
        apart = [
            one.person == other.person for one, other in combinations(pictures, 2)
            if {one.person, other.person} <= persons and abs(one.age - other.age) >= 30
        ]  # fmt: skip
        available.append(min(sum(apart), len(apart) - sum(apart)))
    assert min(available) == len(pairs) // 20 > 0


def test_the_same_pictures_give_the_same_pairs_in_any_order_and_each_pair_is_drawn_as_often():
    pictures = people(30, 6)
    assert pairs_by_age(pictures) == pairs_by_age(pictures[::-1])
    # One person in each fold with three pictures, of which two pairs are far enough apart; every one must come.
    three = [Aged(f"{n}_{age}.jpg", f"p{n}", age) for n in range(20) for age in (10, 20, 50)]
    drawn = {pair for pair in pairs_by_age(three) if pair.same}
    assert drawn == {Pair(f"{n}_{age}.jpg", f"{n}_50.jpg", True) for n in range(20) for age in (10, 20)}


def test_pictures_that_are_not_far_apart_give_no_pairs():
    assert pairs_by_age([]) == []
    assert pairs_by_age([Aged("a.jpg", "a", 20), Aged("b.jpg", "a", 49)]) == []
    assert pairs_by_age(people(9, 12)) == []  # fewer people than folds
