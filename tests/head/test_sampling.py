"""Which classes a step uses. Tier 1: no ranks, no devices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.head.sampling import choose_classes, draw_distinct


@given(
    classes=st.integers(1, 400),
    rate=st.floats(0.001, 1.0),
    share=st.floats(0, 1),
    key=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)
@settings(max_examples=200, deadline=None)
def test_a_choice_holds_all_positives_and_the_wanted_number_once_each(classes, rate, share, key):
    positives = np.flatnonzero(np.random.default_rng(key).random(classes) < share)
    chosen = choose_classes(classes, rate, positives, key)
    wanted = max(1, round(rate * classes))
    if wanted >= classes:
        assert chosen is None
        return
    assert (np.diff(chosen) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < classes
    assert np.isin(positives, chosen).all()
    assert len(chosen) == max(wanted, len(positives))


def test_the_same_key_draws_the_same_and_another_does_not():
    positives = np.array([3, 500])
    first = choose_classes(10_000, 0.1, positives, (1, 2, 3))
    assert np.array_equal(first, choose_classes(10_000, 0.1, positives, (1, 2, 3)))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(first, choose_classes(10_000, 0.1, positives, key))


@pytest.mark.parametrize("count", [3, 9, 15])
def test_every_negative_is_drawn_equally_often(count):
    generator, excluded, draws = np.random.default_rng(0), np.array([0, 7, 19]), 6000
    hits = np.zeros(20)
    for _ in range(draws):
        hits[draw_distinct(generator, 20, count, excluded)] += 1
    assert (hits[excluded] == 0).all()
    rest = np.delete(hits, excluded)
    expected = draws * count / 17
    deviation = np.sqrt(draws * count / 17 * (1 - count / 17))
    assert (np.abs(rest - expected) < 5 * deviation).all()


def test_no_classes_and_no_positives_are_fine():
    assert choose_classes(0, 0.1, np.array([], dtype=np.int64), (0, 0, 0)) is None
    assert len(choose_classes(100, 0.1, np.array([], dtype=np.int64), (0, 0, 0))) == 10
