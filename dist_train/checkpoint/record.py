"""A tensor as `torch.save` has put it into a file of a checkpoint: seen to be no more than that, and where it lies."""

import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple, cast

import torch

from dist_train.runtime.safe_pickle import ForbiddenNameError, unpickle

# What `torch.save` names for a tensor. `torch.load(weights_only=True)` admits more, e.g. arrays of any length.
_REBUILD = frozenset({"torch._utils _rebuild_tensor_v2", "collections OrderedDict"})
_STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
_MAX_RECORD = 1 << 16  # bytes of the pickle that describes one tensor
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of an archive's entry: magic, lengths of its name and of what follows
STORAGES = {torch.float32: "FloatStorage", torch.bfloat16: "BFloat16Storage"}
"""Types of tables, and what a record calls their numbers."""

NOT_A_RECORD = (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, RuntimeError)
"""What is raised for a slice that is something else; `RuntimeError` is `zipfile`'s, of an encrypted entry."""


class FileSlice(io.RawIOBase):
    """A part of a file as a file: torch's own cannot be read from its end, where the directory of an archive is."""

    def __init__(self, file: io.BufferedIOBase, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.RawIOBase`."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if begin + offset < 0:
            raise ValueError("a place before its begin")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any buffer
        """See `io.RawIOBase`."""
        self._file.seek(self._start + self._at)
        count = int(self._file.readinto(memoryview(buffer)[: max(0, self._length - self._at)]))
        self._at += count
        return count


def check_record(view: io.RawIOBase) -> None:
    """See that a slice is what `torch.save` makes of one tensor: stored uncompressed, no other names than it needs.

    Raises:
        ValueError, zipfile.BadZipFile, KeyError, RuntimeError: it is not.
    """
    with zipfile.ZipFile(cast(IO[bytes], view)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MAX_RECORD:
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes, expected at most {_MAX_RECORD}")
                _check_names(archive.read(entry))


def _check_names(record: bytes) -> None:
    for operation, argument, _ in pickletools.genops(record):
        if operation.name == "GLOBAL" and (argument in _REBUILD or _STORAGE.fullmatch(str(argument))):
            continue
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"its pickle calls {argument or operation.name}, which no tensor needs")


def find_numbers(view: FileSlice, length: int, sizes: tuple[int, ...], dtype: torch.dtype) -> int:
    """Where the numbers of the one tensor in a record by `torch.save` begin, in bytes from the record's begin.

    Raises:
        ValueError, zipfile.BadZipFile, KeyError, RuntimeError, pickle.UnpicklingError: they do not lie there
            as they are, [sizes] of `dtype`, row after row.
    """
    check_record(view)
    with zipfile.ZipFile(cast(IO[bytes], view)) as archive:
        record = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")
        folder = record.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.open(order).read(8) != b"little":
            raise ValueError("its numbers are not little-endian")
        key = _key_of(archive.read(record), sizes, dtype)
        entry = archive.getinfo(f"{folder}data/{key}")
    size = math.prod(sizes) * dtype.itemsize
    if entry.file_size != size:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes, expected {size}")
    view.seek(entry.header_offset)
    magic, name, further = _LOCAL_HEADER.unpack(view.read(_LOCAL_HEADER.size) or b"")
    start: int = entry.header_offset + _LOCAL_HEADER.size + name + further
    if magic != b"PK\x03\x04" or start + size > length:
        raise ValueError(f"{entry.filename} is not where the archive says")
    return start


def _key_of(record: bytes, sizes: tuple[int, ...], dtype: torch.dtype) -> str:
    """The name under which a record keeps the numbers of its tensor, which must be [sizes], row after row."""
    try:
        tensor = unpickle(record, _admitted(dtype), outside=_Numbers.parse)
    except ForbiddenNameError as error:
        raise ValueError(f"its pickle names {error}, which a table of {dtype} does not need") from error
    expected = _Tensor(0, tuple(sizes), (sizes[1], 1))
    if not isinstance(tensor, tuple) or len(tensor) != 2 or tensor[1] != expected:
        raise ValueError(f"its pickle is not of a tensor {list(sizes)} that is stored row after row")
    return cast(_Numbers, tensor[0]).key


class _Numbers(NamedTuple):
    """What stands outside of a tensor's pickle."""

    key: str

    @classmethod
    def parse(cls, word: object) -> "_Numbers":
        if not isinstance(word, tuple) or len(word) != 5 or word[:2] != ("storage", _NUMBERS):
            raise ValueError("it refers to something else than numbers")
        if not isinstance(word[2], str):
            raise ValueError("its numbers have no name")
        return cls(word[2])


class _Tensor(NamedTuple):
    """How a tensor lies in its numbers."""

    offset: object
    sizes: object
    strides: object


_NUMBERS = "the type of the numbers"


def _rebuilt(numbers: object, offset: object, sizes: object, strides: object, *_: object) -> tuple[object, _Tensor]:
    """In place of torch's `_rebuild_tensor_v2`; whether a gradient is wanted, and hooks, are not read."""
    if not isinstance(numbers, _Numbers):
        raise ValueError("a tensor without numbers")
    return numbers, _Tensor(offset, sizes, strides)


def _nothing(*_: object) -> None:
    """In place of an empty dictionary of hooks."""


def _admitted(dtype: torch.dtype) -> dict[tuple[str, str], Any]:
    rebuild: Callable[..., Any] = _rebuilt
    return {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("collections", "OrderedDict"): _nothing,
        ("torch", STORAGES[dtype]): _NUMBERS,
    }
