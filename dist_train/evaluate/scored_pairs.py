"""Pairs of a set's pictures with their cosines: all genuine ones, and the rare impostor pairs above a cosine."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.identification import mate_pairs, paired_products
from dist_train.evaluate.search import score_blocks
from dist_train.runtime.ranks import ALONE, Ranks

MOST = 1 << 25  # pairs held; 12 bytes each
_BLOCK = 1024  # rows; a rank takes every W-th block


class ScoredPairs(NamedTuple):
    """Pairs of two pictures, each pair once, in the order of `left` and `right`.

    Attributes:
        left: number of a picture, int32 [n].
        right: number of a later picture, int32 [n].
        score: cosine, float32 [n].
    """

    left: np.ndarray
    right: np.ndarray
    score: np.ndarray

    def at_least(self, threshold: float) -> "ScoredPairs":
        """Those at or above a cosine."""
        kept = self.score >= np.float32(threshold)
        return ScoredPairs(self.left[kept], self.right[kept], self.score[kept])


def false_matches(features: Tensor, labels: Tensor, threshold: float, ranks: Ranks = ALONE) -> ScoredPairs:
    """All pairs of pictures of different labels with a cosine of at least `threshold`; equal on every rank.

    Collectives (with several ranks): two gathers of messages.

    Args:
        features: unit rows [N, D], the same on every rank.
        labels: int64 [N].
        threshold: lowest cosine.
        ranks: the processes that share the work.

    Raises:
        UserError: more than 33 million pairs.
    """

    def search() -> ScoredPairs:
        parts, held = [_NO_PAIRS], 0
        for start in range(ranks.rank * _BLOCK, len(features), ranks.world_size * _BLOCK):
            rows = features[start : start + _BLOCK]
            for _, columns, scores in score_blocks(rows, features[start:], query_block=_BLOCK):
                left, right = (scores >= threshold).nonzero().unbind(1)
                score = scores[left, right]
                left, right = left + start, right + start + columns.start
                kept = (labels[left] != labels[right]) & (left < right)
                parts.append(_pairs(left[kept], right[kept], score[kept]))
                held += len(parts[-1].left)
                if held > MOST:
                    raise UserError(
                        f"more than {MOST:,} impostor pairs match at a cosine of {threshold:.4f}; ask for a lower FMR"
                    )
        return _joined(parts)

    return _joined(ranks.gather(ranks.agree(search, "all")))


def genuine_pairs(features: Tensor, labels: Tensor, ranks: Ranks = ALONE) -> ScoredPairs:
    """All pairs of pictures of one label; equal on every rank.

    Collectives (with several ranks): a gather of messages.

    Args:
        features: unit rows [N, D], the same on every rank.
        labels: int64 [N].
        ranks: the processes that share the work.

    Raises:
        UserError: more than 33 million pairs.
    """
    counts = labels.unique(return_counts=True)[1]
    if (count := int((counts * (counts - 1) // 2).sum())) > MOST:
        raise UserError(
            f"{count:,} pairs of pictures of one identity, expected at most {MOST:,}; the largest identity has "
            f"{int(counts.max()):,} pictures: take fewer of it"
        )
    parts = [_NO_PAIRS]
    for start in range(ranks.rank * _BLOCK, len(features), ranks.world_size * _BLOCK):
        left, right = mate_pairs(labels[start : start + _BLOCK], labels)
        later = left + start < right
        left, right = left[later] + start, right[later]
        parts.append(_pairs(left, right, paired_products(features, features, left, right)))
    return _joined(ranks.gather(_joined(parts)))


_NO_PAIRS = ScoredPairs(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def _pairs(left: Tensor, right: Tensor, score: Tensor) -> ScoredPairs:
    return ScoredPairs(left.int().numpy(), right.int().numpy(), score.numpy())


def _joined(parts: list[ScoredPairs]) -> ScoredPairs:
    left, right, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((right, left))
    return ScoredPairs(left[order], right[order], score[order])
