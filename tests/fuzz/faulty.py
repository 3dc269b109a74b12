"""Readers with the faults that a campaign must find."""

import os
import time
from pathlib import Path

from dist_train.errors import UserError
from tests.fuzz.mutations import flip_bits
from tests.fuzz.reader import Reader, Scene

SOUND = b"sound"


def _scenes() -> list[Scene]:
    return [Scene({"x": SOUND}, "x")]


def _on_change(what):
    def read(home: Path) -> None:
        if (home / "x").read_bytes() != SOUND:
            what()

    return read


def _refuse() -> None:
    raise UserError("no")


def _stumble() -> None:
    raise KeyError("x")


def _fill() -> None:
    bytearray(3 << 30)


KINDS = {
    "refused": _refuse,
    "TRACEBACK": _stumble,
    "HANG": lambda: time.sleep(60),
    "MEMORY": _fill,
    "CRASH": os.abort,
}
READERS = {name: Reader(name, _scenes, _on_change(what), (flip_bits,)) for name, what in KINDS.items()}
READERS["seed"] = Reader("seed", lambda: [Scene({"x": b"bad"}, "x")], _on_change(_refuse), (flip_bits,))
