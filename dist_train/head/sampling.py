"""Which classes take part in a step's softmax: this rank's positives and randomly drawn negatives.

Partial FC (An et al. 2022, "Killing Two Birds with One Stone", section 3.2) keeps all positives and samples
negatives uniformly. The cost of a draw follows the number of negatives, not the number of classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from dist_train.head.sizes import chosen_classes
from dist_train.head.storage import Lease, RowStore

Indices = NDArray[np.int64]


def draw_distinct(generator: np.random.Generator, population: int, count: int, excluded: Indices) -> Indices:
    """`count` distinct values of [0, population) without `excluded`, every subset equally likely; sorted.

    Args:
        generator: source of randomness.
        population: values are drawn from [0, population).
        count: at most population - len(excluded).
        excluded: sorted, distinct.
    """
    candidates = population - len(excluded)
    if count * 2 > candidates:
        # Dense: draw the few that stay out. A mask of one byte per class is no larger than the result.
        out = draw_distinct(generator, population, candidates - count, excluded) if count < candidates else excluded[:0]
        mask = np.ones(population, dtype=bool)
        mask[excluded] = False
        mask[out] = False
        return np.flatnonzero(mask)
    drawn = excluded[:0]
    while len(drawn) < count:
        # Repeats are dropped, so draw a little more; any surplus is removed at random, which keeps subsets uniform.
        missing = count - len(drawn)
        fresh = generator.integers(0, population, size=missing + missing // 8 + 16)
        drawn = np.concatenate([drawn, fresh])
        drawn.sort()
        drawn = drawn[np.concatenate([[True], drawn[1:] != drawn[:-1]])]
        if len(excluded):
            drawn = drawn[~_contained(drawn, excluded)]
    if len(drawn) > count:
        keep = np.ones(len(drawn), dtype=bool)
        keep[generator.choice(len(drawn), size=len(drawn) - count, replace=False, shuffle=False)] = False
        drawn = drawn[keep]
    return drawn


def choose_classes(num_classes: int, rate: float, positives: Indices, key: tuple[int, int, int]) -> Indices | None:
    """This rank's classes for one step: all positives, then negatives up to rate · num_classes.

    Args:
        num_classes: classes of this rank.
        rate: share of this rank's classes, in (0, 1].
        positives: sorted distinct classes of the batch that this rank owns.
        key: (seed, step, rank): the same key draws the same negatives.

    Returns:
        Sorted distinct classes; None means all.
    """
    wanted = chosen_classes(num_classes, rate)
    if wanted >= num_classes:
        return None
    if len(positives) >= wanted:
        return positives
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    negatives = draw_distinct(generator, num_classes, wanted - len(positives), positives)
    return np.insert(negatives, np.searchsorted(negatives, positives), positives)


def _contained(values: Indices, table: Indices) -> NDArray[np.bool_]:
    """For each of sorted `values`, whether it is in sorted `table`."""
    place = np.searchsorted(values, table)
    inside = place < len(values)
    place, wanted = place[inside], table[inside]
    mask = np.zeros(len(values), dtype=bool)
    mask[place[values[place] == wanted]] = True
    return mask


class ClassSampler:
    """The choice of each step's classes, made before the forward pass where the labels are known by then.

    Args:
        store: gives the rows of chosen classes.
        rate: share of this rank's classes.
        seed: of the run.
        rank: this rank.
        first: this rank's first class.
    """

    def __init__(self, store: RowStore, rate: float, seed: int, rank: int, first: int) -> None:
        self.store = store
        self.rate = rate
        self.seed = seed
        self.rank = rank
        self.first = first
        self.step = torch.zeros((), dtype=torch.int64)  # choices so far; a tensor, so that checkpoints restore it
        self._ahead: tuple[Indices, Indices | None, Lease] | None = None

    def choose_ahead(self, labels: Indices) -> None:
        """Choose for the global batch's `labels` [G] now, so that rows are fetched while embeddings are computed."""
        self.forget()
        local = labels[(labels >= self.first) & (labels < self.first + self.store.num_classes)] - self.first
        self._ahead = (labels, *self._draw(np.unique(local)))

    def forget(self) -> None:
        """Drop a choice made ahead, with its lease."""
        if self._ahead is not None:
            self._ahead[2].release()
            self._ahead = None

    def choose(self, labels: Indices, positives: Indices) -> tuple[Indices | None, Lease]:
        """The step's classes (None: all) and a lease on their rows.

        Args:
            labels: [G] of the global batch.
            positives: sorted distinct classes of these labels that this rank owns, counted from its first.
        """
        if self._ahead is not None and np.array_equal(self._ahead[0], labels):
            _, classes, lease = self._ahead
            self._ahead = None
            return classes, lease
        self.forget()
        return self._draw(positives)

    def _draw(self, positives: Indices) -> tuple[Indices | None, Lease]:
        key = (self.seed, int(self.step), self.rank)
        self.step += 1
        classes = choose_classes(self.store.num_classes, self.rate, positives, key)
        return classes, self.store.lease(None if classes is None else torch.from_numpy(classes))
