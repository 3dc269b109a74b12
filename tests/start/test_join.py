"""Joining classes by name."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from dist_train.errors import UserError
from dist_train.start.join import Names, join_by_name


def names(labels, texts, classes=100, where="file", way_out="rename it"):
    return Names(pa.table({"label": labels, "name": texts}), classes, where, way_out)


def test_classes_are_joined_by_name_whatever_the_order_of_their_rows():
    join = join_by_name(names([4, 0, 2], ["d", "a", "c"], 5), names([3, 1, 0], ["a", "x", "d"], 6))
    assert join.old.tolist() == [4, -1, -1, 0, -1, -1]
    assert (join.carried, join.new, join.gone) == (2, 4, 3)


def test_no_name_of_very_many_becomes_a_python_object():
    count = 100_000
    texts = pa.array(np.arange(10**11, 10**11 + count)).cast(pa.string())
    old, new = names(np.arange(count), texts, count), names(np.arange(count)[::-1].copy(), texts, count)
    tracemalloc.start()
    join = join_by_name(old, new)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(join.old, np.arange(count)[::-1])
    assert peak < 60 * count  # the texts alone would take 61 bytes each


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_name_that_is_there_twice_and_meant_is_said_with_its_labels(side):
    twice, once = names([0, 7, 2, 3], ["a", "b", "b", "c"], where=side), names([1, 0], ["b", "a"])
    pair = (twice, once) if side == "old" else (once, twice)
    with pytest.raises(UserError, match=rf"{side}: labels 7 and 2 are both named 'b', of 1 names .*; rename it"):
        join_by_name(*pair)
    with pytest.raises(UserError, match="labels 7 and 2 are both named 'b'"):
        join_by_name(twice, twice)


def test_a_name_that_is_there_twice_and_not_meant_is_no_harm():
    join = join_by_name(names([0, 1, 2], ["a", "old", "old"], 3), names([0, 1, 2], ["new", "new", "a"], 3))
    assert join.old.tolist() == [-1, -1, 0]
    assert (join.carried, join.new, join.gone) == (1, 2, 2)
