"""The rows of a file of embeddings as they are clustered: unit embeddings, and where their pictures lie."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.counters import Ints
from dist_train.embed.table import EmbeddingFile, unit_length
from dist_train.embed.tar_keys import tars_of
from dist_train.errors import UserError


def stored_rows(file: EmbeddingFile, start: int, stop: int) -> Tensor:
    """Embeddings [stop - start, D] of rows `start` to `stop`, each divided by its length.

    Raises:
        UserError: an embedding is zero or not finite.
        WorkError: the file is damaged.
    """
    out = np.empty((stop - start, file.embedding_dim), dtype=np.float32)
    at = 0
    for names, features in file.batches():
        low, high = max(start - at, 0), min(stop - at, len(features))
        if low < high:
            rows = np.arange(at + low, at + high)
            out[at + low - start : at + high - start] = unit_length(
                features[low:high], names.slice(low), file.path, rows
            )
        at += len(features)
    return torch.from_numpy(out)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the pictures of a file of embeddings lie in tars; a few numbers for each, since there may be very many.

    Attributes:
        tars: names of the tars, as the file has them.
        tar: int32 [N] number of each picture's tar in `tars`.
        offsets: int64 [N] of the encoded pictures.
        sizes: int64 [N] in bytes.
        labels: int64 [N] labels that the pictures had; -1: none.
    """

    tars: list[str]
    tar: NDArray[np.int32]
    offsets: Ints
    sizes: Ints
    labels: Ints

    def of(self, tar: str) -> Ints:
        """Rows of the pictures in a tar."""
        return np.flatnonzero(self.tar == self.tars.index(tar)) if tar in self.tars else np.empty(0, np.int64)


def read_places(file: EmbeddingFile) -> Places:
    """Where all rows' pictures lie.

    Raises:
        UserError: a picture is not in a tar.
        WorkError: the file is damaged.
    """
    numbers: dict[str, int] = {}
    parts: list[tuple[NDArray[np.int32], Ints, Ints, Ints]] = []
    at = 0
    for names, features in file.batches():
        tars = tars_of(names.column("path"))
        if tars.null_count:
            row = int(np.flatnonzero(tars.is_null().to_numpy(zero_copy_only=False))[0])
            raise UserError(
                f"embeddings {file.path}: row {at + row}, {names.column('path')[row]}: expected pictures of a set of "
                "shards; make one of the pictures (`headcount prep align`, or tars of theirs) and embed that"
            )
        known = np.array([numbers.setdefault(name, len(numbers)) for name in tars.dictionary.to_pylist()], np.int32)
        labels = names.column("label").fill_null(-1)
        offsets, sizes = _ints(names.column("offset")), _ints(names.column("size"))
        parts.append((known[tars.indices.to_numpy()], offsets, sizes, _ints(labels)))
        at += len(features)
    columns = [np.concatenate(each) for each in zip(*parts, strict=True)] if parts else [np.empty(0, np.int64)] * 4
    return Places(list(numbers), *columns)


def _ints(column: pa.Array) -> Ints:
    values: Ints = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return values
