"""Joining classes by name."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from dist_train.errors import UserError
from dist_train.start.join import check_distinct, join_by_name


def test_classes_are_joined_by_name_whatever_the_order_of_their_rows():
    old = pa.table({"label": [4, 0, 2], "name": ["d", "a", "c"]})
    new = pa.table({"label": [3, 1, 0], "name": ["a", "x", "d"]})
    join = join_by_name(old, 5, new, 6)
    assert join.old.tolist() == [4, -1, -1, 0, -1, -1]
    assert (join.carried, join.new, join.gone) == (2, 4, 3)


def test_no_name_of_very_many_becomes_a_python_object():
    count = 200_000
    names = pa.chunked_array([[f"{number:012d}" for number in range(count)]])
    old = pa.table({"label": np.arange(count), "name": names})
    new = pa.table({"label": np.arange(count)[::-1].copy(), "name": names})
    tracemalloc.start()
    check_distinct(old, "old", "")
    join = join_by_name(old, count, new, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(join.old, np.arange(count)[::-1])
    assert peak < 48 * count  # a string alone takes 61 bytes


def test_a_name_that_is_there_twice_is_said_with_its_labels():
    table = pa.table({"label": [0, 7, 2, 3], "name": ["a", "b", "b", "a\x1b[31m"]})
    with pytest.raises(UserError, match=r"file: labels 7 and 2 are both named 'b', of 1 names .*; rename it"):
        check_distinct(table, "file", "rename it")
