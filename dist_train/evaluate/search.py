"""Exact nearest-neighbour search by blocks: memory is one block of scores, whatever the gallery's size."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.matmul import matmul

QUERY_BLOCK = 2048
GALLERY_BLOCK = 8192
CPU_GALLERY_BLOCK = 2048  # scores of a block stay in cache and below what glibc gives back to the system
TIE = 2e-6
"""Cosines that are no farther apart are equal: summed in another order, as for a pair alone and in a block, the same
cosine differs by up to 1e-6 (128 to 4,096 numbers), and rounding must not decide who comes first."""


class RowBlocks(Protocol):
    """Rows [N, D]: a tensor, or what gives one for a slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def score_blocks(
    queries: Tensor, gallery: RowBlocks, query_block: int = QUERY_BLOCK, gallery_block: int | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Inner products of queries [Q, D] with gallery rows [N, D], block by block.

    Yields:
        The block's queries, its gallery rows, and its scores [q, n]. The scores live in one reused buffer: they are
        overwritten by the next block, and may be written to.
    """
    gallery_block = gallery_block or (CPU_GALLERY_BLOCK if queries.device.type == "cpu" else GALLERY_BLOCK)
    buffer = torch.empty(
        min(query_block, len(queries)) * min(gallery_block, len(gallery)), dtype=queries.dtype, device=queries.device
    )
    for row in range(0, len(gallery), gallery_block):
        columns = slice(row, min(row + gallery_block, len(gallery)))
        block = gallery[columns].T
        for start in range(0, len(queries), query_block):
            rows = slice(start, min(start + query_block, len(queries)))
            out = buffer[: (rows.stop - rows.start) * block.shape[1]].view(-1, block.shape[1])
            yield rows, columns, matmul(queries[rows], block, out=out)


def nearest(
    queries: Tensor, gallery: RowBlocks, k: int, gallery_block: int | None = None, removed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k gallery rows with the largest inner product, for each query.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        k: how many, at most N.
        gallery_block: rows at a time.
        removed: bool [N], rows that are not found; at least k must be left. None for none.

    Returns:
        Scores [Q, k], falling, and row numbers int64 [Q, k].

    Raises:
        UserError: empty gallery, or k out of range.
    """
    if not len(gallery):
        raise UserError("the gallery is empty")
    if not 1 <= k <= len(gallery):
        raise UserError(f"k={k} of a gallery of {len(gallery)}; expected 1 to {len(gallery)}")
    best = queries.new_full((len(queries), k), -torch.inf)
    rows_of_best = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    for rows, columns, scores in score_blocks(queries, gallery, gallery_block=gallery_block):
        if removed is not None:
            scores.masked_fill_(removed[columns], -torch.inf)
        # Late blocks rarely hold a better row for most queries; a maximum is far cheaper than a selection.
        # Not "larger": a score that is not a number must come to light, not hide the others of its block.
        hopeful = (~(scores.amax(dim=1) <= best[rows, -1])).nonzero().squeeze(1)
        if not len(hopeful):
            continue
        chosen, index = scores[hopeful].topk(min(k, scores.shape[1]), dim=1)
        where = hopeful + rows.start
        candidates = torch.cat([best[where], chosen], dim=1)
        numbers = torch.cat([rows_of_best[where], index + columns.start], dim=1)
        merged, place = candidates.topk(k, dim=1)
        best[where] = merged
        rows_of_best[where] = numbers.gather(1, place)
    return best, rows_of_best
