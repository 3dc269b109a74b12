"""Stored descriptions compared."""

import pytest

from dist_train.section import first_difference


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, ""),
        ({"b": {"c": 2}, "z": 1}, {"b": {"c": 3}, "z": 2}, "b.c was 2, is 3"),
        ({"a": 1}, {}, "a was 1, is None"),
        ({"source": "/data/" + "x" * 80}, {"source": "/y"}, f"source was '/data/{'x' * 80}', is '/y'"),
        ({"a": "x" * 999}, {"a": 1}, f"a was '{'x' * 299}..., is 1"),
    ],
)
def test_the_first_entry_that_differs_is_named_with_both_values_and_endless_values_are_cut(old, new, text):
    assert first_difference(old, new) == text


def test_a_digest_is_cut_where_its_beginning_is_enough():
    old, new = {"sha256": "a" * 64, "path": "/x" * 40}, {"sha256": "b" * 64, "path": "/x" * 40}
    assert first_difference(old, new) == f"sha256 was '{'a' * 64}', is '{'b' * 64}'"
    assert first_difference(old, new, cut_digests=True) == f"sha256 was '{'a' * 19}..., is '{'b' * 19}..."
