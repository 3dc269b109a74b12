"""Pairs of pictures many years apart, in ten folds as LFW's: AgeDB's protocol on pictures whose ages are known.

AgeDB (Moschoglou et al., CVPRW 2017, section 4): ten folds, each of 300 pairs of one person and 300 of two. The folds
have no person in common, so that a threshold chosen on nine of them has seen nobody of the tenth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dist_train.data.counters import Ints
from dist_train.data.pair_list import Pair

FOLDS, OF_A_KIND = 10, 300  # pairs of each kind in a fold
YEARS = 30
SEED = 0
_MOST_SPARE = 1 << 20  # pairs drawn beyond those wanted, as some are of one person


class Aged(NamedTuple):
    """A picture of somebody at an age."""

    path: str
    person: str
    age: int


def pairs_by_age(pictures: Sequence[Aged], years: int = YEARS, of_a_kind: int = OF_A_KIND) -> list[Pair]:
    """Pairs at least `years` apart, drawn by `SEED`; the same for the same pictures in any order.

    Every fold has as many pairs of one person as of two, and as many as every other fold: `of_a_kind` of each, or what
    the fold with the fewest has.

    Returns:
        Fold after fold, in each those of one person first; none where a fold has none of a kind.
    """
    pictures = sorted(pictures)
    ages = np.array([each.age for each in pictures], dtype=np.int64)
    _, person = np.unique([each.person for each in pictures], return_inverse=True)
    random = np.random.Generator(np.random.Philox(key=np.array([SEED, years], np.uint64)))
    # People with pictures far apart are dealt first, so that each fold has its share of them.
    by_person = [np.flatnonzero(person == each) for each in range(int(person.max(initial=-1)) + 1)]
    order = random.permutation(len(by_person))
    far = np.array([np.ptp(ages[rows]) >= years for rows in by_person], dtype=bool)
    order = order[np.argsort(~far[order], kind="stable")]
    folds = []
    for fold in range(FOLDS):
        groups = [by_person[each] for each in order[fold::FOLDS]]
        genuine = [_Apart.of(rows, ages, years) for rows in groups]
        same = _drawn(genuine, of_a_kind, random)
        every = _Apart.of(np.concatenate([np.empty(0, np.int64), *groups]), ages, years)
        spare = min(sum(each.total for each in genuine), _MOST_SPARE)
        others = _drawn([every], of_a_kind + spare, random)
        folds.append((same, others[person[others[:, 0]] != person[others[:, 1]]]))
    most = min(of_a_kind, *(len(part) for fold in folds for part in fold))
    return [
        Pair(pictures[left].path, pictures[right].path, is_same)
        for same, others in folds
        for part, is_same in ((same, True), (others, False))
        for left, right in part[:most].tolist()
    ]


class _Apart(NamedTuple):
    """Pairs of a group that are far enough apart, by number, without a list of them.

    Attributes:
        rows: pictures by age, int64 [n].
        ends: running sum of how many pictures are far enough after each, int64 [n].
    """

    rows: Ints
    ends: Ints

    @classmethod
    def of(cls, rows: Ints, ages: Ints, years: int) -> "_Apart":
        rows = rows[np.argsort(ages[rows], kind="stable")]
        rising = ages[rows]
        return cls(rows, np.cumsum(len(rows) - np.searchsorted(rising, rising + years)))

    @property
    def total(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def pairs(self, numbers: Ints) -> Ints:
        """The younger and the older picture of each pair [P, 2]."""
        left = np.searchsorted(self.ends, numbers, side="right")
        # The partners of a picture are the last ones of the group; the last pair of a picture has the oldest.
        right = len(self.rows) - (self.ends[left] - numbers)
        return np.stack([self.rows[left], self.rows[right]], axis=1)


def _drawn(groups: Sequence[_Apart], most: int, random: np.random.Generator) -> Ints:
    """Pairs of all groups in an order at random, at most so many, int64 [P, 2]."""
    starts = np.cumsum([0, *(each.total for each in groups)])
    total = int(starts[-1])
    numbers = random.choice(total, min(most, total), replace=False) if total else starts[:0]
    found = np.empty((len(numbers), 2), np.int64)
    of = np.searchsorted(starts, numbers, side="right") - 1
    for group in np.unique(of).tolist():
        at = of == group
        found[at] = groups[group].pairs(numbers[at] - starts[group])
    return found
