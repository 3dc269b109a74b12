"""Pairs for a verification set: of one identity and of two, as many of each in every fold.

Every identity, and every two of them, is drawn from in turn, so that those with many pictures do not rule the figure.
Folds have identities of their own where there are enough of them: a threshold that is chosen on nine folds is then
judged on people that it has not seen. No pair is there twice.
"""

from typing import NamedTuple

import numpy as np

from dist_train.data.counters import Ints, UInts, permute, permute_each
from dist_train.evaluate.verification import FOLDS

_SAME, _OTHER, _UNITS = 1, 2, 3  # streams of random numbers
_TWEAK_BITS = 47  # of a hash that chooses a permutation


class Pairs(NamedTuple):
    """Pairs of samples, by their numbers.

    Attributes:
        left: int64 [n].
        right: int64 [n].
        same: whether both are of one identity, bool [n]; in turn.
        disjoint: whether no identity is in two folds.
        folded: whether each fold has as many pairs of one kind as of the other.
    """

    left: Ints
    right: Ints
    same: np.ndarray
    disjoint: bool
    folded: bool


def draw_pairs(sizes: Ints, hashes: UInts, wanted: int, seed: int) -> Pairs:
    """Draw pairs of samples that lie identity by identity, the first identity's from 0 on.

    Args:
        sizes: samples of each identity, at least two of each [identities].
        hashes: of the identities, by which they are brought into an order.
        wanted: number of pairs; there are fewer where the samples do not suffice.
        seed: of the draws.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    disjoint = len(sizes) >= 2 * FOLDS
    pools = [
        _Pool(sizes[own], hashes[own], starts[own], seed) for own in _dealt(sizes, hashes, FOLDS if disjoint else 1)
    ]
    most = min(min(pool.same, pool.other) for pool in pools)  # of each kind, in each pool
    each = min(wanted // (2 * FOLDS), most if disjoint else most // FOLDS)
    if each:
        taken = [pool.draw(each if disjoint else each * FOLDS) for pool in pools]
    else:
        taken = [pools[0].draw(min(most, wanted // 2))]
    left, right, same = (np.concatenate(parts) for parts in zip(*taken, strict=True))
    return Pairs(left, right, same, disjoint, each > 0)


def _dealt(sizes: Ints, hashes: UInts, folds: int) -> list[Ints]:
    """Identities of each fold, by hash. They are dealt by size to and fro, so that folds have alike many pairs."""
    order = np.lexsort((hashes, -sizes))
    turn = np.arange(len(order)) % (2 * folds)
    fold = np.minimum(turn, 2 * folds - 1 - turn)
    return [own[np.lexsort((own, hashes[own]))] for own in (order[fold == number] for number in range(folds))]


class _Pool:
    """Identities among which pairs are drawn.

    Attributes:
        same: number of possible pairs of one identity.
        other: number of possible pairs of two identities.
    """

    def __init__(self, sizes: Ints, hashes: UInts, starts: Ints, seed: int) -> None:
        self._sizes, self._starts, self._seed = sizes, starts, seed
        self._hashes = (hashes >> np.uint64(64 - _TWEAK_BITS)).astype(np.int64)
        self._within = sizes * (sizes - 1) // 2
        self.same = int(self._within.sum())
        self.other = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2

    def draw(self, count: int) -> tuple[Ints, Ints, np.ndarray]:
        """As many pairs of one identity as of two, in turn: left, right and same [2 * count]."""
        pairs = np.empty((2, count, 2), dtype=np.int64)  # sides, pairs, kinds
        pairs[..., 0], pairs[..., 1] = self._same_pairs(count), self._other_pairs(count)
        left, right = pairs.reshape(2, -1)
        return left, right, np.tile([True, False], count)

    def _same_pairs(self, count: int) -> tuple[Ints, Ints]:
        who, turns = _in_turn(self._within, count)
        number = permute_each(turns, self._within[who], self._seed, self._hashes[who], np.asarray(_SAME))
        low, high = _two_of(number)
        return self._starts[who] + low, self._starts[who] + high

    def _other_pairs(self, count: int) -> tuple[Ints, Ints]:
        people = len(self._sizes)
        twos = people * (people - 1) // 2
        low, high = _two_of(permute(np.arange(min(twos, count)), twos, self._seed, _UNITS))
        which, turns = _in_turn(self._sizes[low] * self._sizes[high], count)
        low, high = low[which], high[which]
        number = permute_each(
            turns, self._sizes[low] * self._sizes[high], self._seed, self._hashes[low], self._hashes[high] ^ _OTHER
        )
        return (
            self._starts[low] + number // self._sizes[high],
            self._starts[high] + number % self._sizes[high],
        )


def _two_of(number: Ints) -> tuple[Ints, Ints]:
    """The pair `low < high` with each number, where pairs are counted (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    high = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    high -= high * (high - 1) // 2 > number  # the root is rounded
    high += high * (high + 1) // 2 <= number
    return number - high * (high - 1) // 2, high


def _in_turn(capacities: Ints, count: int) -> tuple[Ints, Ints]:
    """`count` draws from those that have each some to give: who gives, and for which time."""
    who, turns, left, turn = [], [], count, 0
    while left:
        giving = np.flatnonzero(capacities > turn)[:left]
        who.append(giving)
        turns.append(np.full(len(giving), turn, dtype=np.int64))
        left, turn = left - len(giving), turn + 1
    return np.concatenate(who), np.concatenate(turns)
