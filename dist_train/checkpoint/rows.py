"""Rows of a table in a checkpoint, by number, out of the mapped files: nothing is loaded that is not asked for."""

import io
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from dist_train.checkpoint.metadata import read_metadata
from dist_train.checkpoint.reader import FileSlice, check_record
from dist_train.errors import WorkError
from dist_train.runtime.safe_pickle import ForbiddenNameError, unpickle

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of an archive's entry: magic, lengths of its name and of what follows
_STORAGES = {torch.float32: "FloatStorage", torch.bfloat16: "BFloat16Storage"}


class StoredTable:
    """A table [C, width] of a checkpoint, float32 or bfloat16, in however many shares ranks have written it.

    Args:
        checkpoint: its directory.
        name: of the table, e.g. `head.centers`.

    Attributes:
        shape: (C, width).
        dtype: of its numbers.

    Raises:
        WorkError: no such table in the checkpoint, or files that are damaged or made by something else.
    """

    def __init__(self, checkpoint: Path, name: str) -> None:
        metadata = read_metadata(checkpoint)
        entry = metadata.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata) or len(entry.size) != 2:
            raise WorkError(f"checkpoint {checkpoint}: no table {name} in it; take a checkpoint of a trained head")
        self.shape: tuple[int, int] = (entry.size[0], entry.size[1])
        self.dtype = entry.properties.dtype
        if self.dtype not in _STORAGES:
            raise WorkError(f"checkpoint {checkpoint}: {name} is {self.dtype}, expected float32 or bfloat16")
        self._shares: list[_Share] = []
        end = 0
        for chunk in sorted(entry.chunks, key=lambda each: tuple(each.offsets)):
            first, column = chunk.offsets
            if column or chunk.sizes[1] != self.shape[1] or first != end:
                raise WorkError(
                    f"checkpoint {checkpoint}: {name} is cut into {list(chunk.sizes)} at {list(chunk.offsets)}, "
                    f"expected whole rows from row {end} on; take another checkpoint"
                )
            end += chunk.sizes[0]
            if chunk.sizes[0]:
                place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
                self._shares.append(_map_share(checkpoint, place, first, tuple(chunk.sizes), self.dtype))

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows [n], sorted, in [0, C) -> [n, width] in memory of their own.

        The pages of the files that this touched are given back, so that a loop over blocks takes the memory of one.

        Raises:
            IndexError: a row that the table does not have.
        """
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.shape[0]:
            raise IndexError(f"rows {rows[0]} .. {rows[-1]} of {self.shape[0]}")
        found = torch.empty(len(rows), self.shape[1], dtype=self.dtype)
        out = found.view(torch.uint8).numpy()
        for share in self._shares:
            low, high = np.searchsorted(rows, [share.first, share.first + len(share.rows)])
            if low < high:
                # "clip": the range is checked, and any other mode goes through a buffer as large as the result.
                np.take(share.rows, rows[low:high] - share.first, axis=0, out=out[low:high], mode="clip")
                share.pages.madvise(mmap.MADV_DONTNEED)
        return found


class _Share(NamedTuple):
    """Rows of one rank.

    Attributes:
        first: number of the first one.
        rows: [n, bytes of a row] over the mapped file.
        pages: the mapping.
    """

    first: int
    rows: NDArray[np.uint8]
    pages: mmap.mmap


def _map_share(checkpoint: Path, place: _StorageInfo, first: int, sizes: tuple[int, ...], dtype: torch.dtype) -> _Share:
    path = checkpoint / place.relative_path
    try:
        with path.open("rb", buffering=0) as file:
            view = FileSlice(cast(io.BufferedIOBase, file), place.offset, place.length)
            start = place.offset + _find_numbers(view, place.length, sizes, dtype)
            page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            size = math.prod(sizes) * dtype.itemsize
            pages = mmap.mmap(file.fileno(), start - page + size, access=mmap.ACCESS_READ, offset=page)
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, RuntimeError) as error:
        where = f"{path} at byte {place.offset}"
        raise WorkError(f"{where}: {error}; refused, nothing was run; take another checkpoint") from error
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror or error}; take another checkpoint") from error
    rows = np.frombuffer(pages, np.uint8, size, start - page).reshape(sizes[0], -1)
    return _Share(first, rows, pages)


def _find_numbers(view: FileSlice, length: int, sizes: tuple[int, ...], dtype: torch.dtype) -> int:
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
        if not isinstance(word, tuple) or len(word) != 5 or word[:2] != ("storage", _STORAGE):
            raise ValueError("it refers to something else than numbers")
        if not isinstance(word[2], str):
            raise ValueError("its numbers have no name")
        return cls(word[2])


class _Tensor(NamedTuple):
    """How a tensor lies in its numbers."""

    offset: object
    sizes: object
    strides: object


_STORAGE = "the type of the numbers"


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
        ("torch", _STORAGES[dtype]): _STORAGE,
    }
