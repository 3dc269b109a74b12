"""Text of unknown origin in messages."""

import os

import pytest

from dist_train.runtime.text import first_line, kind_and_line, shown, shown_name, shown_start


@pytest.mark.parametrize(
    ("value", "text"),
    [("a\nb", "'a\\nb'"), (7, "7"), (None, "None"), ([1, 2], "list"), (1 << 5000, "a number of 5001 bits")],
)
def test_a_value_is_quoted_on_one_line(value, text):
    assert shown(value) == text


def test_a_long_value_is_cut():
    text = shown("x" * 10_000)
    assert len(text) < 100
    assert text.endswith("...")


@pytest.mark.parametrize(
    ("name", "text"),
    [("plain.jpg", "plain.jpg"), ("笑.jpg", "笑.jpg"), (os.fsdecode(b"\xff.jpg"), "\\xff.jpg"), ("a\nb", "a\\nb")],
)
def test_a_name_is_shown_in_full_with_what_no_terminal_should_obey_escaped(name, text):
    assert shown_name(name) == text


def test_the_start_of_a_text_is_printable_ascii():
    assert shown_start("\x1b[31m笑") == "\\x1b[31m\\u7b11"
    assert len(shown_start("x" * 10_000)) < 130


@pytest.mark.parametrize(
    ("error", "line", "with_kind"),
    [
        (ValueError("bad\nworse"), "bad", "ValueError: bad"),
        (MemoryError(), "MemoryError", "MemoryError: "),
        (OSError("x" * 999), "x" * 999, f"OSError: {'x' * 191}"),
    ],
)
def test_an_error_is_told_in_a_line(error, line, with_kind):
    assert first_line(error) == line
    assert kind_and_line(error) == with_kind
