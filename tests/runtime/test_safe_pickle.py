import collections
import os
import pickle
import resource
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_train.runtime.safe_pickle import ForbiddenNameError, unpickle
from dist_train.runtime.text import shown_start

DATA = {"a": [1, 2.5, None, True], ("b", 1): (b"bytes", "text", {3, 4}), "c": bytearray(b"array"), 2: frozenset({1})}


@dataclass(frozen=True)
class Point:
    x: int
    y: int


ADMITTED = {(Point.__module__, "Point"): Point}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_comes_back(protocol):
    names = {
        ("builtins", "bytearray"): bytearray,
        ("__builtin__", "bytearray"): bytearray,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("__builtin__", "frozenset"): frozenset,
        ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
    }
    assert unpickle(pickle.dumps(DATA, protocol=protocol), names) == DATA


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_of_admitted_classes_come_back(protocol):
    point = Point(3, 4)
    assert unpickle(pickle.dumps({point: [point]}, protocol=protocol), ADMITTED) == {point: [point]}


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_any_other_name_is_refused_before_anything_is_called(tmp_path, protocol):
    with pytest.raises(ForbiddenNameError, match=r"^posix\.mkdir$"):
        unpickle(pickle.dumps([Point(1, 2), Attack(tmp_path / "harm")], protocol=protocol), ADMITTED | COPY_NAMES)
    assert not (tmp_path / "harm").exists()


COPY_NAMES = {
    ("copy_reg", "_reconstructor"): lambda *_: Point(0, 0),
    ("__builtin__", "object"): object,
}


def test_a_number_of_the_extension_registry_names_nothing():
    for opcode in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"):
        with pytest.raises(ForbiddenNameError, match="registry"):
            unpickle(b"\x80\x02" + opcode + b".", ADMITTED)


@pytest.mark.parametrize("state", [b"}U\x01xK\x01s", b"N}U\x01xK\x01s\x86"])
def test_a_state_is_never_set_on_a_class_or_a_function(state):
    def function():
        pass

    for what in (Point, function):
        with pytest.raises(pickle.UnpicklingError, match="a state for"):
            unpickle(b"\x80\x02ca\nb\n" + state + b"b.", {("a", "b"): what}, encoding="ascii")
        assert not hasattr(what, "x")


def test_the_type_of_an_object_cannot_be_changed_by_its_state():
    body = b"\x80\x02ca\nb\n)\x81N}U\x09__class__ca\nc\ns\x86b."
    with pytest.raises(pickle.UnpicklingError, match="state that is tuple"):
        unpickle(body, {("a", "b"): Point, ("a", "c"): collections.Counter})


HUGE = 1 << 31
BOMBS = {
    "a memo entry of number 536,870,912": b"K\x01p536870912\n.",
    "a memo entry of number 2^31": b"\x80\x02K\x01r" + struct.pack("<I", HUGE) + b".",
    "an array that claims 16 GiB": b"\x80\x05\x96" + struct.pack("<Q", HUGE * 8) + b"abc.",
    "bytes that claim 16 GiB": b"\x80\x04\x8e" + struct.pack("<Q", HUGE * 8) + b"abc.",
    "text that claims 2 GiB": b"\x80\x02X" + struct.pack("<I", HUGE) + b"abc.",
    "a number that claims 2 GiB": b"\x80\x02\x8b" + struct.pack("<I", HUGE - 1) + b"abc.",
    "a frame that claims 16 GiB": b"\x80\x04\x95" + struct.pack("<Q", HUGE * 8) + b"N.",
    "three million sets": b"\x80\x04" + b"\x8f" * 3_000_000 + b".",
    "three million marks": b"\x80\x02" + b"(" * 3_000_000 + b".",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_stays_small_in_memory(bomb, tmp_path):
    (tmp_path / "bomb").write_bytes(BOMBS[bomb])
    script = """
import pathlib, pickle, sys
from dist_train.runtime.safe_pickle import unpickle
try:
    unpickle(pathlib.Path(sys.argv[1]).read_bytes(), {})
except pickle.UnpicklingError as error:
    print(error)
"""

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))

    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "bomb"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Memory" not in ended.stdout


def nested(depth):
    """A tuple of two references to a tuple of two references to ... : 2^depth members of a few bytes."""
    body = b"\x80\x04)\x94"
    for number in range(depth):
        body += b"h" + bytes([number]) + b"\x86\x94"
    return body


@pytest.mark.timeout(10)
@pytest.mark.parametrize("end", [b"}h\x3cNs.", b"}(h\x3cNu.", b"(h\x3cNd.", b"\x8f(h\x3c\x90.", b"(h\x3c\x91."])
def test_keys_that_take_for_ever_to_hash_are_refused(end):
    with pytest.raises(pickle.UnpicklingError, match="nested or long key"):
        unpickle(nested(60) + end, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x04\xff.", "instruction 0xff is none"),
        (b"\x80\x63.", "unsupported pickle protocol: 99"),
        (b"\x80\x02Kx", "cut off"),
        (b"", "cut off"),
        (b"\x80\x04h\x07.", "Memo value not found at index 7"),
        (b"\x80\x04\x85.", "IndexError|out of range"),
        (b"\x80\x02]U\x01aK\x01s.", "an entry for list, expected a dictionary"),
        (b"Pabc\n.", "persistent id"),
    ],
)
def test_a_damaged_pickle_is_one_readable_line(body, message):
    with pytest.raises(pickle.UnpicklingError, match=message) as found:
        unpickle(body, ADMITTED)
    assert "\n" not in str(found.value)


def test_more_steps_than_given_are_refused():
    body = pickle.dumps(list(range(1000)))
    assert unpickle(body, {}, steps=2000) == list(range(1000))
    with pytest.raises(pickle.UnpicklingError, match="more than 500 steps"):
        unpickle(body, {}, steps=500)


def test_names_are_shown_on_one_line_without_control_characters():
    with pytest.raises(ForbiddenNameError) as found:
        unpickle(b"c\x1b[31mos\n" + b"x" * 10_000 + b"\n.", {})
    assert str(found.value).startswith("\\x1b[31mos.xxx")
    assert len(str(found.value)) < 200
    assert shown_start("a\nb") == "a\\x0ab"
