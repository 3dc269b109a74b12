"""The reader of the lists of WIDER FACE's subsets: MATLAB files (version 5) of cells, text and numbers.

SciPy reads such files too; it makes room for as many cells as a file says, and follows cells inside of cells however
deep they go: 184 bytes took 1.6 GB of SciPy 1.17, and 20,000 cells inside of one another ended the process. Source:
MathWorks, "MAT-File Format".
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import UserError
from dist_train.runtime.files import first_fault, read_bounded

_MAX_BYTES = 16 << 20  # the largest of these lists has some 3 million bytes unpacked
_MAX_UNPACKED = 64 << 20
_MAX_TEXT = 4096
_MAX_DEPTH = 4
_NOTHING = np.empty((0, 0))
_HEADER_BYTES = 128
_COMPRESSED, _MATRIX = 15, 14
_CELL, _TEXT = 1, 4
_NUMBERS = range(6, 16)
_KINDS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}


class _OtherError(ValueError):
    """The file is damaged, or has what such lists have not."""


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file: cells are lists in MATLAB's order, text is str, numbers are float64 [n, m].

    Raises:
        UserError: it cannot be read, or is damaged, too large, or of another form.
    """
    try:
        data = read_bounded(path, _MAX_BYTES)
        if len(data) < _HEADER_BYTES or data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise _OtherError("not a MATLAB file of version 5")
        order = "<" if data[126:128] == b"IM" else ">"
        return dict(_variables(data, order))
    except (OSError, ValueError, zlib.error, struct.error) as error:
        told = first_fault(error) if isinstance(error, OSError | ValueError) else "damaged"
        raise UserError(f"{path}: {told}; expected a list of WIDER FACE's eval_tools") from error


def _variables(data: bytes, order: str) -> Iterator[tuple[str, Any]]:
    room = _MAX_UNPACKED
    for kind, body in _elements(memoryview(data)[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            content = unpack.decompress(body, room)
            if unpack.unconsumed_tail:
                raise _OtherError(f"more than {_MAX_UNPACKED:,} bytes when unpacked")
            room -= len(content)
            for inner, part in _elements(memoryview(content), order):
                if inner == _MATRIX:
                    yield _matrix(part, order, 0)
        elif kind == _MATRIX:
            yield _matrix(body, order, 0)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element; small ones have both in eight bytes."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise _OtherError("damaged")
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        if at + 8 + size > len(data):
            raise _OtherError("cut off")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)


def _matrix(data: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of an array: flags, sizes, name, and what its class has."""
    if depth > _MAX_DEPTH:
        raise _OtherError(f"cells more than {_MAX_DEPTH} deep")
    if not len(data):
        return "", _NOTHING
    parts = _elements(data, order)
    try:
        (_, flags), (_, sizes), (_, name) = next(parts), next(parts), next(parts)
    except StopIteration:
        raise _OtherError("damaged") from None
    kind = struct.unpack_from(order + "I", flags)[0] & 0xFF
    label = bytes(name).decode("ascii", "replace")
    if kind == _CELL:
        return label, [_matrix(part, order, depth + 1)[1] for inner, part in parts if inner == _MATRIX]
    if kind != _TEXT and kind not in _NUMBERS:
        raise _OtherError(f"variable {label!r} is of class {kind}")
    shape = np.frombuffer(sizes, order + "i4").tolist()
    held, content = next(parts, (0, memoryview(b"")))
    if held not in _KINDS:
        raise _OtherError(f"variable {label!r} holds data of type {held}")
    values = np.frombuffer(content, order + _KINDS[held])
    if kind == _TEXT and len(values) > _MAX_TEXT:
        raise _OtherError(f"variable {label!r} is text of {len(values):,} letters")
    if kind == _TEXT:
        return label, "".join(map(chr, values.tolist()))
    if len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] != len(values):
        raise _OtherError(f"variable {label!r} has {len(values)} numbers, expected {shape}")
    return label, values.astype(np.float64).reshape(shape, order="F")
