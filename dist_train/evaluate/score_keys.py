"""Whole numbers in the order of float32 scores, in two halves of 16 bits: counted twice, any quantile is exact.

A first count by the upper halves tells in which prefix the score of a demanded rank lies, a second by the lower halves
within that prefix which score it is. Memory is a few tables of 65,536, whatever the number of scores and their spread.
"""

from typing import NamedTuple

import numpy as np

HALF = 1 << 16
_SIGN = 1 << 15
_RAW = np.arange(HALF)
# The bits of negative numbers fall as the numbers rise.
_PREFIX_OF = np.where(_RAW < _SIGN, _RAW + _SIGN, HALF - 1 - _RAW).astype(np.uint16)


class Place(NamedTuple):
    """A score by its key.

    Attributes:
        prefix: upper half, rising with the score.
        rest: lower half, rising with the score.
    """

    prefix: int
    rest: int


def prefixes(scores: np.ndarray) -> np.ndarray:
    """Upper halves of the keys of float32 [n], uint16 [n]. Negative zero has to be made zero before."""
    return _PREFIX_OF[scores.view(np.uint16)[1::2]]


def count_prefixes(scores: np.ndarray) -> np.ndarray:
    """How many of float32 [n] have each prefix: int64 [65,536], rising."""
    counts = np.zeros(HALF, np.int64)
    counts[_PREFIX_OF] = np.bincount(scores.view(np.uint16)[1::2], minlength=HALF)
    return counts


def count_rests(scores: np.ndarray, prefix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many of float32 [n] have each rest, by `wanted` prefix: int64 [P, 65,536].

    Args:
        scores: float32 [n].
        prefix: their prefixes [n].
        wanted: prefixes [P], each once.
    """
    slots = np.zeros(HALF, np.uint8)
    slots[wanted] = np.arange(1, len(wanted) + 1)
    slot = slots[prefix]
    chosen = np.flatnonzero(slot)
    rest = scores.view(np.uint16)[::2][chosen].astype(np.int64)
    rest = np.where(prefix[chosen] < _SIGN, HALF - 1 - rest, rest)  # negative scores
    codes = (slot[chosen].astype(np.int64) - 1) * HALF + rest
    return np.bincount(codes, minlength=len(wanted) * HALF).reshape(-1, HALF)


def score_at(place: Place) -> np.float32:
    """The score with a key."""
    if place.prefix >= _SIGN:
        bits = (place.prefix - _SIGN) << 16 | place.rest
    else:
        bits = (HALF - 1 - place.prefix) << 16 | (HALF - 1 - place.rest)
    return np.float32(np.array([bits], np.uint32).view(np.float32)[0])


def lower_edges() -> np.ndarray:
    """The lowest score of each prefix, float32 [65,536]; not finite at both ends, where no cosine is."""
    upper = np.where(_RAW >= _SIGN, _RAW - _SIGN, HALF - 1 - _RAW).astype(np.uint32)
    lower = np.where(_RAW >= _SIGN, 0, HALF - 1).astype(np.uint32)
    return (upper << 16 | lower).view(np.float32)


def ranked_from_top(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Where the item with `rank` others above it is: its index in the rising `counts`, and its rank within."""
    above = counts.sum() - np.cumsum(counts)  # [n], of all later indices
    index = int(np.argmax(above <= rank))
    return index, rank - int(above[index])
