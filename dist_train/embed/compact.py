"""A gallery's rows in few bits, which a search reads first, and the exact rows that decide.

GALLERY/compact.npy      int8 or float16 [N, D]
GALLERY/scales.npy       float32 [N], of int8 alone: a row is about its scale times its integers

A query of length 1 has with a row, and with what stands for it here, inner products that differ by at most the length
of the rows' difference (Cauchy-Schwarz). The largest such length is kept as `error`. So rows whose approximate score
is more than that below the exact score of the k-th match cannot be among the first k, and what is found is what a
search of the exact rows finds.
"""

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.embed.table import load_shaped, start_array
from dist_train.evaluate.search import nearest
from dist_train.runtime.written import written

COMPACT_NAME, SCALES_NAME = "compact.npy", "scales.npy"
_LEVELS = 127
_LEAST_CANDIDATES, _MORE = 128, 8
ROUNDING = 1e-5  # of float32 inner products of unit vectors
_MOST_NUMBERS = 1 << 24  # of exact rows, or of scores, that are in memory at a time
_BLOCK = 4096  # rows that are expanded at a time: they stay in cache
_INTEGER_BLOCK = 1 << 16  # rows of an integer product


class Rows(StrEnum):
    """How a gallery's rows are searched."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"
    cells = "cells"  # `dist_train.embed.cells`


def compact_rows(unit: NDArray[np.float32], kind: Rows) -> tuple[NDArray[Any], NDArray[np.float32], float]:
    """Unit rows [n, D] in few bits, their scales [n], and the length of the largest difference.

    The scale of a row makes its largest number 127.
    """
    if kind is Rows.float16:
        values: NDArray[Any] = unit.astype(np.float16)
        scales = np.ones(len(unit), np.float32)
    else:
        scales = (np.abs(unit).max(axis=1) / _LEVELS).astype(np.float32)
        values = np.rint(unit / scales[:, None]).clip(-_LEVELS, _LEVELS).astype(np.int8)
    difference = unit.astype(np.float64) - values.astype(np.float64) * scales[:, None]
    return values, scales, float(np.linalg.norm(difference, axis=1).max(initial=0.0))


class CompactWriter:
    """Writes the files of compact rows while the exact ones are written.

    Args:
        directory: of the gallery.
        kind: int8 or float16.
        shape: (N, D).
        opened: closes the files, each of which appears by rename.

    Attributes:
        error: of the rows so far.
    """

    def __init__(self, directory: Path, kind: Rows, shape: tuple[int, int], opened: ExitStack) -> None:
        self._kind = kind
        self._values: IO[bytes] = opened.enter_context(written(directory / COMPACT_NAME))
        start_array(self._values, shape, "<f2" if kind is Rows.float16 else "|i1")
        self._scales: IO[bytes] | None = None
        if kind is Rows.int8:
            self._scales = opened.enter_context(written(directory / SCALES_NAME))
            start_array(self._scales, shape[:1], "<f4")
        self.error = 0.0

    def add(self, unit: NDArray[np.float32]) -> None:
        """Write unit rows [n, D]."""
        values, scales, error = compact_rows(unit, self._kind)
        self._values.write(values.tobytes())
        if self._scales is not None:
            self._scales.write(scales.astype("<f4").tobytes())
        self.error = max(self.error, error)

    def described(self) -> dict[str, Any]:
        """What the gallery's description says of the rows."""
        return {"rows": self._kind.value, "error": self.error}


class CompactGallery:
    """Compact rows on disk, mapped into memory, beside the exact ones.

    Args:
        directory: of the gallery.
        described: what its description says of them.
        exact: float32 [N, D].

    Raises:
        OSError: a file cannot be read.
        ValueError, TypeError, LookupError: damaged, or not of these rows.
    """

    def __init__(self, directory: Path, described: dict[str, Any], exact: Tensor) -> None:
        kind = Rows(described["rows"])
        self._error = float(described["error"])
        if kind not in (Rows.float16, Rows.int8) or not 0 <= self._error <= 1:
            raise ValueError(f"compact rows are {kind} with an error of {self._error}")
        stored = np.float16 if kind is Rows.float16 else np.int8
        self._values = torch.from_numpy(load_shaped(directory / COMPACT_NAME, stored, exact.shape))
        self._exact = exact
        self._scales: Tensor | None = None
        if kind is Rows.int8:
            self._scales = torch.from_numpy(load_shaped(directory / SCALES_NAME, np.float32, exact.shape[:1]))

    def __len__(self) -> int:
        return len(self._exact)

    def __getitem__(self, rows: slice) -> Tensor:
        """What stands for rows: float32 [n, D]."""
        block = self._values[rows].float()
        return block if self._scales is None else block.mul_(self._scales[rows, None])

    def nearest(self, queries: Tensor, k: int, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k rows with the largest exact inner product, for each query; as `dist_train.evaluate.search.nearest`.

        Args:
            queries: of length 1, [Q, D].
            k: how many, at most the rows that are not removed.
            removed: bool [N], rows that are not found; None for none.
        """
        best = torch.empty(len(queries), k)
        rows = torch.zeros(len(queries), k, dtype=torch.int64)
        left = torch.arange(len(queries))
        count = max(_LEAST_CANDIDATES, 4 * k)
        while len(left):
            if count >= len(self) // 2:  # nothing is gained any more
                best[left], rows[left] = nearest(queries[left], self._exact, k, removed=removed)
                break
            approximate, candidates, lost = self._candidates(queries[left], count, removed)
            scores = self._decided(queries[left], candidates)
            if removed is not None:  # some are candidates where few others are left
                scores.masked_fill_(removed[candidates], -torch.inf)
            found, place = scores.topk(k, dim=1)
            # Not "smaller": a score that is not a number is one that the exact search must bring to light.
            sure = approximate[:, -1] + self._error + lost + ROUNDING < found[:, -1]
            best[left[sure]], rows[left[sure]] = found[sure], candidates.gather(1, place)[sure]
            left, count = left[~sure], count * _MORE
        return best, rows

    def _candidates(self, queries: Tensor, count: int, removed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The `count` rows with the largest approximate scores, for each query, and these scores: [Q, count] both.

        The third is by how much a score is further off than the rows' own error, because the query was rounded: [Q].
        """
        exact = torch.zeros(len(queries))
        if len(queries) * len(self) > _MOST_NUMBERS:
            return *nearest(queries, self, count, gallery_block=_BLOCK, removed=removed), exact
        # Few queries: one selection among all scores costs less than one in each block.
        scores = torch.empty(len(queries), len(self))
        if self._scales is not None and integers_are_fast():
            lost = self._integer_scores(queries, scores)
        else:
            lost = exact
            expanded = torch.empty(_BLOCK, queries.shape[1])
            for start in range(0, len(self), _BLOCK):
                part = self._values[start : start + _BLOCK]
                scores[:, start : start + _BLOCK] = queries @ expanded[: len(part)].copy_(part).T
        if self._scales is not None:
            scores.mul_(self._scales)
        if removed is not None:
            scores.masked_fill_(removed, -torch.inf)
        best, rows = scores.topk(count, dim=1)
        return best, rows, lost

    def _integer_scores(self, queries: Tensor, scores: Tensor) -> Tensor:
        """Fill scores [Q, N], but for the rows' scales, by integer products; by how much they are off, at most: [Q].

        A query is the sum of two int8 vectors with a scale each, the second of what the first leaves over.
        """
        coarse = queries.abs().amax(dim=1, keepdim=True) / _LEVELS
        first = (queries / coarse).round_()
        fine = coarse / (2 * _LEVELS)
        second = ((queries - first * coarse) / fine).round_().clamp_(-_LEVELS, _LEVELS)
        both = torch.cat([first, second]).to(torch.int8)
        for start in range(0, len(self), _INTEGER_BLOCK):
            part = self._values[start : start + _INTEGER_BLOCK]
            products = torch._int_mm(both, part.T).float()  # [2 Q, n]
            torch.addcmul(
                products[: len(queries)] * coarse,
                products[len(queries) :],
                fine,
                out=scores[:, start : start + _INTEGER_BLOCK],
            )
        left = queries.double() - first.double() * coarse.double() - second.double() * fine.double()
        longest = 1 + self._error  # of what stands for a row
        lost: Tensor = (left.norm(dim=1) * longest).float()
        return lost

    def _decided(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Exact inner products [Q, n] with the rows `candidates` [Q, n]; they are read in the order of the file."""
        few = max(1, _MOST_NUMBERS // (candidates.shape[1] * queries.shape[1]))  # queries at a time
        parts = []
        for some, asked in zip(candidates.split(few), queries.split(few), strict=True):
            numbers, place = some.unique(return_inverse=True)
            parts.append((self._exact[numbers][place] @ asked[:, :, None]).squeeze(2))  # [q, n, D] x [q, D, 1]
        return torch.cat(parts)


def integers_are_fast() -> bool:
    """Whether products of int8 are exact and fast here: without VNNI sums of two may saturate on the way."""
    return bool(torch.cpu._is_vnni_supported())
