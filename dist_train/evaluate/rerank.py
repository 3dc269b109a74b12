"""Re-ranking of searches by the neighbours that two pictures share, in bounded memory.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), as the authors'
code computes it, with its usual k1 = 20, k2 = 6, lambda = 0.3. Over all pictures, probes and gallery together:

    d(i, j)   squared distance 2 - 2 cos, divided by the largest one of i
    F(i, k)   i and its k nearest
    R(i, k)   those j of F(i, k) for which i is in F(j, k)
    R*(i)     R(i, k1), with R(j, k1 / 2) of each j in it if more than two thirds of that are in R(i, k1)
    V(i)      exp(-d(i, j)) for j in R*(i), else 0, divided by its sum; then the mean over F(i, k2 - 1)
    J(i, j)   1 - sum min(V(i), V(j)) / sum max(V(i), V(j))

A gallery is ordered by rising (1 - lambda) J + lambda d. V has about a hundred entries a picture that are not 0; only
these are kept. The distances are computed block by block, twice.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.embeddings import rank_slice
from dist_train.evaluate.retrieval import Scores, Searches, block_of
from dist_train.runtime.matmul import matmul
from dist_train.runtime.ranks import ALONE, Ranks

K1, K2, LAMBDA = 20, 6, 0.3
MOST_PICTURES = 200_000
"""Probes and gallery together: 82 TFLOP, since all are compared with all twice; V, its copy by column and what both are
made of take some 5 kB a picture."""
_HALF = int(np.around(K1 / 2))
_BLOCK = 256  # pictures whose neighbours' neighbours are compared at one time

Numbers = NDArray[np.int64]


class _Rows(NamedTuple):
    """A sparse matrix by rows: entries starts[i] .. starts[i + 1] are row i's; columns rise within a row."""

    starts: Numbers
    columns: Numbers
    values: NDArray[np.float32]


class _Near(NamedTuple):
    """The nearest of every picture, itself among them, nearest first [A, K1 + 1], and its largest distance [A]."""

    rows: Numbers
    largest: NDArray[np.float32]


def reranked(searches: Searches, ranks: Ranks = ALONE) -> Scores:
    """Scores of re-ranked searches, higher is better. A collective; the scores themselves are not.

    Collectives (with several ranks): one gather of the nearest of each rank's part of the pictures.

    Raises:
        UserError: more pictures than fit.
    """
    probes, gallery = searches.probes, searches.gallery
    together = gallery if searches.itself is not None else torch.cat([gallery, probes])
    if len(together) > MOST_PICTURES:
        raise UserError(
            f"{len(together):,} pictures to re-rank, at most {MOST_PICTURES:,} are taken; leave --rerank (rerank) out"
        )
    near = _nearest(together, ranks)
    encoded = _mean_over(_encode(together, near), near.rows[:, :K2])
    entries = len(gallery)
    by_column = _by_column(encoded, entries)
    places = np.arange(len(probes)) + entries if searches.itself is None else searches.itself.numpy()

    def scores(rows: slice) -> Tensor:
        block = probes[rows]
        numbers = places[rows]
        distances = _distances(block, gallery) / torch.from_numpy(near.largest[numbers])[:, None]
        shared = np.empty(distances.shape, np.float32)
        for row, number in enumerate(numbers):
            shared[row] = _shared(encoded, by_column, int(number), entries)
        overlap = torch.from_numpy(shared)
        jaccard = 1 - overlap / (2 - overlap)  # each V sums to 1
        return -((1 - LAMBDA) * jaccard + LAMBDA * distances)

    return scores


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared Euclidean distances of unit rows [n, m]."""
    products = matmul(left, right.T, out=torch.empty(len(left), len(right)))
    return products.mul_(-2).add_(2).clamp_(min=0)


def _nearest(pictures: Tensor, ranks: Ranks) -> _Near:
    count = min(K1 + 1, len(pictures))
    start, stop = rank_slice(len(pictures), ranks.rank, ranks.world_size)
    step = block_of(len(pictures))
    rows, largest = [np.empty((0, count), np.int64)], [np.empty(0, np.float32)]
    for first in range(start, stop, step):
        distances = _distances(pictures[first : min(first + step, stop)], pictures)
        largest.append(distances.amax(dim=1).clamp_(min=torch.finfo().tiny).numpy())
        here = torch.arange(len(distances))
        distances[here, here + first] = -1  # a picture is its own nearest, before copies of it
        rows.append(distances.topk(count, dim=1, largest=False).indices.numpy())
    parts = ranks.gather((np.concatenate(rows), np.concatenate(largest)))
    return _Near(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _encode(pictures: Tensor, near: _Near) -> _Rows:
    """V before its mean is taken."""
    reciprocal, halves = _reciprocal(near.rows), _reciprocal(near.rows[:, : _HALF + 1])
    lengths, columns, values = [], [], []
    for start in range(0, len(pictures), _BLOCK):
        stop = min(start + _BLOCK, len(pictures))
        own = np.where(reciprocal[start:stop], near.rows[start:stop], -1)  # [b, K1 + 1]
        further = np.where(halves[own], near.rows[own, : _HALF + 1], -2)  # [b, K1 + 1, K1 / 2 + 1]
        further[own < 0] = -2
        common = (further[..., None] == own[:, None, None, :]).any(axis=-1).sum(axis=-1)  # [b, K1 + 1]
        further[common <= 2 / 3 * (further >= 0).sum(axis=-1)] = -2
        chosen = np.sort(np.concatenate([own, further.reshape(len(own), -1)], axis=1), axis=1)
        new = chosen >= 0
        new[:, 1:] &= chosen[:, 1:] != chosen[:, :-1]
        row, place = new.nonzero()
        column = chosen[row, place]
        left, right = pictures[torch.from_numpy(row + start)], pictures[torch.from_numpy(column)]
        distance = (2 - 2 * (left * right).sum(dim=1)).clamp_(min=0).numpy() / near.largest[row + start]
        weight = np.exp(-distance)
        lengths.append(new.sum(axis=1))
        columns.append(column)
        values.append((weight / np.bincount(row, weight, len(own))[row]).astype(np.float32))
    return _Rows(_starts(np.concatenate(lengths)), np.concatenate(columns), np.concatenate(values))


def _reciprocal(near: Numbers) -> NDArray[np.bool_]:
    """Which of a picture's nearest [A, k] have it among theirs."""
    found = np.empty(near.shape, np.bool_)
    for start in range(0, len(near), _BLOCK):
        part = near[start : start + _BLOCK]
        found[start : start + _BLOCK] = (near[part] == np.arange(start, start + len(part))[:, None, None]).any(axis=-1)
    return found


def _mean_over(encoded: _Rows, near: Numbers) -> _Rows:
    """The mean of the rows near[i] [A, k] as row i."""
    lengths, columns, values = [], [], []
    width = int(encoded.columns.max()) + 1
    for start in range(0, len(near), _BLOCK):
        part = near[start : start + _BLOCK]
        entry, owner = _entries(encoded.starts, part.reshape(-1))
        key = owner // part.shape[1] * width + encoded.columns[entry]
        keys, place = np.unique(key, return_inverse=True)
        total = np.bincount(place, encoded.values[entry], len(keys)) / part.shape[1]
        lengths.append(np.bincount(keys // width, minlength=len(part)))
        columns.append(keys % width)
        values.append(total.astype(np.float32))
    return _Rows(_starts(np.concatenate(lengths)), np.concatenate(columns), np.concatenate(values))


def _by_column(encoded: _Rows, rows: int) -> _Rows:
    """The first rows of a matrix by column: entry for entry its row in place of its column."""
    inside = slice(0, int(encoded.starts[rows]))
    columns = encoded.columns[inside]
    order = np.argsort(columns, kind="stable")
    row = np.repeat(np.arange(rows), np.diff(encoded.starts[: rows + 1]))
    counts = np.bincount(columns, minlength=len(encoded.starts) - 1)
    return _Rows(_starts(counts), row[order], encoded.values[inside][order])


def _shared(encoded: _Rows, by_column: _Rows, number: int, entries: int) -> NDArray[np.float64]:
    """Sum min(V(i), V(j)) of one picture with each of the gallery [N]."""
    inside = slice(encoded.starts[number], encoded.starts[number + 1])
    entry, owner = _entries(by_column.starts, encoded.columns[inside])
    least = np.minimum(encoded.values[inside][owner], by_column.values[entry])
    return np.bincount(by_column.columns[entry], least, entries).astype(np.float64)


def _entries(starts: Numbers, rows: Numbers) -> tuple[Numbers, Numbers]:
    """All entries of some rows of a sparse matrix, and for each the place of its row in `rows`."""
    lengths = starts[rows + 1] - starts[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[rows][owner] + within, owner


def _starts(lengths: Numbers) -> Numbers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
