"""What others name reaches a terminal escaped."""

import io
import logging

import pytest
import yaml

from dist_train.runtime.terminal import PrintableFormatter, echo, printable
from tests.data.sets import make_set
from tests.launch.recipes import headcount_here

NAMES = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\rb": r"a\x0db",
    "a\x9bb\x7f": r"a\x9bb\x7f",
    "photo\u202egpj.exe": r"photo\u202egpj.exe",
    "\u2066x\u2069\u200f\u061c": r"\u2066x\u2069\u200f\u061c",
    "bad\udcff": r"bad\udcff",
    "line\u2028line": r"line\u2028line",
    "müller\tü 中文\n": "müller\tü 中文\n",
}


@pytest.mark.parametrize(("name", "seen"), NAMES.items())
def test_characters_that_a_terminal_obeys_are_escaped_and_no_others(name, seen):
    assert printable(name) == seen
    printable(name).encode()


def test_printed_lines_and_log_records_are_escaped(capsys):
    echo("set \x1b[31m")
    echo("set \u202e", err=True)
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, "shard %s", ("a\x1b]0;b\x07.tar",), None))
    out, err = capsys.readouterr()
    assert (out, err) == ("set \\x1b[31m\n", "set \\u202e\n")
    assert sink.getvalue() == "shard a\\x1b]0;b\\x07.tar\n"


def test_errors_of_commands_show_names_escaped(tmp_path):
    hostile = tmp_path / "\x1b[2Jset\u202e"
    refused = headcount_here("data", "inspect", hostile)
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr
    assert "\u202e" not in refused.stderr
    assert r"\x1b[2Jset\u202e: no such directory" in refused.stderr
    make_set(hostile, [3], num_classes=3, size=16)
    shown = headcount_here("data", "inspect", hostile)
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert r"\x1b[2Jset\u202e" in shown.stdout


def test_names_in_a_recipe_are_shown_escaped(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"run_dir": "x", "\x1b[31mdata": {"path": "y"}}))
    refused = headcount_here("train", tmp_path / "r.yaml")
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr
