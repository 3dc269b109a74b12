"""Rows of a table in a checkpoint, by number, out of the mapped files: nothing is loaded that is not asked for."""

import io
import math
import mmap
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from dist_train.checkpoint.metadata import read_metadata
from dist_train.checkpoint.record import NOT_A_RECORD, STORAGES, FileSlice, find_numbers
from dist_train.errors import WorkError


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
        if self.dtype not in STORAGES:
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
            start = place.offset + find_numbers(view, place.length, sizes, dtype)
            page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            size = math.prod(sizes) * dtype.itemsize
            pages = mmap.mmap(file.fileno(), start - page + size, access=mmap.ACCESS_READ, offset=page)
    except NOT_A_RECORD as error:
        where = f"{path} at byte {place.offset}"
        raise WorkError(f"{where}: {error}; refused, nothing was run; take another checkpoint") from error
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror or error}; take another checkpoint") from error
    rows = np.frombuffer(pages, np.uint8, size, start - page).reshape(sizes[0], -1)
    return _Share(first, rows, pages)
