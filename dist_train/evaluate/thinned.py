"""A bounded list out of any number of scored pairs, each kept with a known chance, dense where errors are rare."""

from typing import NamedTuple

import numpy as np

from dist_train.runtime.ranks import ALONE, Ranks

KEPT = 1 << 14
"""Pairs that are all kept; of the first n > KEPT, KEPT (1 + ln(n / KEPT)) are expected to be."""
_MARGIN = 4.0  # resampled thresholds lie at rates around the demanded one


class PairSample(NamedTuple):
    """Pairs in the order of their scores, rising; equal ones in that of their pictures.

    Attributes:
        scores: float32 [n].
        left: number of the first picture's identity, int32 [n].
        right: of the second's, int32 [n].
        weights: pairs that each stands for, 1 / its chance, float64 [n].
    """

    scores: np.ndarray
    left: np.ndarray
    right: np.ndarray
    weights: np.ndarray


class Thinning:
    """Choice of pairs by chance: that of a pair with r - 1 others before it is about min(1, KEPT / r).

    So counts up to any depth have a relative standard error of at most 1 / sqrt(KEPT), 0.8 %. The chance depends on the
    prefix of a score alone, and random numbers on the block alone: any number of ranks chooses the same pairs.

    Args:
        counts: of pairs by prefix, [65,536], rising.
        from_top: pairs are ranked from the highest score, else from the lowest.
        depth: share of the pairs below four times which none is kept.
        kept: as `KEPT`.
    """

    def __init__(self, counts: np.ndarray, *, from_top: bool, depth: float = 1.0, kept: int = KEPT) -> None:
        step = -1 if from_top else 1
        rank = np.cumsum(counts[::step])[::step]
        before = rank - counts
        share = np.minimum(1.0, kept / np.maximum(rank, 1))
        share[before > _MARGIN * depth * counts.sum()] = 0.0
        self._share = share.astype(np.float32)
        self._parts: list[tuple[np.ndarray, ...]] = []

    def choose(self, prefix: np.ndarray, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the chosen ones of scores with `prefix` [n], and their chances float32."""
        share = self._share[prefix]
        chosen = np.flatnonzero(np.random.default_rng(seed).random(len(prefix), np.float32) < share)
        return chosen, share[chosen]

    def keep(self, scores: np.ndarray, left: np.ndarray, right: np.ndarray, shares: np.ndarray) -> None:
        """Keep pairs of pictures `left` and `right` [n]."""
        self._parts.append((scores, left.astype(np.int32), right.astype(np.int32), shares))

    def gathered(self, identity: np.ndarray, ranks: Ranks = ALONE) -> PairSample:
        """The pairs that all ranks have kept. A collective.

        Args:
            identity: number of each picture's identity.
            ranks: those that share the work.
        """
        nothing = (np.empty(0, np.float32), *[np.empty(0, np.int32)] * 2, np.empty(0, np.float32))
        mine = tuple(np.concatenate(column) for column in zip(nothing, *self._parts, strict=True))
        scores, left, right, shares = (np.concatenate(column) for column in zip(*ranks.gather(mine), strict=True))
        order = np.lexsort((right, left, scores))
        identity = identity.astype(np.int32)
        return PairSample(scores[order], identity[left[order]], identity[right[order]], 1 / shares[order].astype(float))
