"""Identities that are one: two labels whose pictures scatter about one centre.

The means of a and b pictures of one person are apart by |mean - other mean|^2 = (1/a + 1/b) s^2 on average, where s^2
is the scatter of a picture about its identity's mean, as both labels show it. The ratio of the two sides, that of an
analysis of variance, is 1 on average for one person, and large for others but look-alikes. How it is distributed in
this set is seen on identities that are split at random. A label that is two people itself scatters so much that
everybody is near to it; it is compared with nobody.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dist_train.clean.cores import Cores, chunks
from dist_train.clean.mixture import Floats, Mixture, mixture
from dist_train.clean.neighbours import nearest_rows
from dist_train.data.counters import Ints
from dist_train.runtime.ranks import Ranks

_NEIGHBOURS = 8  # centres that are looked at for each, itself among them
_SPLIT = 5000  # identities that are split at random
_LEAST_SPLIT = 4  # pictures of one that is
_PRIOR = 4  # pictures' worth of the set's mean scatter in that of a pair: small identities say little of theirs
_POSSIBLE = 0.98  # share of the halves of identities
_TINY = 1e-12
_BLOCK = 1 << 15  # pairs at a time
_SEED = 0


class Merges(NamedTuple):
    """Pairs of identities that were compared.

    Attributes:
        pairs: labels, the one with fewer pictures first, int64 [P, 2].
        cosine: of their centres [P].
        distance: the statistic; 1 on average for one person [P].
        mixture: what the distances say.
        cut: pairs at or below it are one.
        possible: pairs at or below it may be one: halves of an identity seldom have more.
        mixed: number of labels that take no part, since they are two people themselves.
    """

    pairs: Ints
    cosine: Floats
    distance: Floats
    mixture: Mixture
    cut: float
    possible: float
    mixed: int

    @property
    def found(self) -> Ints:
        """Numbers of the pairs that are one, the nearest first."""
        found = np.flatnonzero(self.distance <= self.cut)
        return found[np.argsort(self.distance[found], kind="stable")]


def find_merges(features: Tensor, cores: Cores, certainty: float, cut: float | None, ranks: Ranks) -> Merges:
    """Compare each identity with those whose centres are nearest; a collective.

    Args:
        features: unit rows [N, D].
        cores: of their identities.
        certainty: share of right ones that is asked for.
        cut: largest distance of one person; None: by the set's own.
        ranks: the processes that share the search.
    """
    groups = _Groups.of(features, cores.labels, cores.weights, cores.sums)
    mixed = groups.mixed(_strangers(cores))
    both, cosine = _neighbours(cores, ((cores.counts > 0) & ~mixed).nonzero().squeeze(1), ranks)
    distance = groups.distances(both)
    halves = _halves(features, cores, groups.typical)
    found = mixture(distance, halves, certainty)
    counts = cores.counts[both]
    both = torch.where((counts[:, :1] > counts[:, 1:]), both.flip(1), both)
    possible = float(np.quantile(halves, _POSSIBLE)) if len(halves) else -np.inf
    return Merges(both.numpy(), cosine, distance, found, found.cut if cut is None else cut, possible, int(mixed.sum()))


def _neighbours(cores: Cores, present: Tensor, ranks: Ranks) -> tuple[Tensor, Floats]:
    """Pairs of the labels `present` whose centres are neighbours, each once, int64 [P, 2], and their cosines [P].

    What is needed on the way is as large as the centres, and gone before the pairs are compared.
    """
    centers = cores.centers[present]
    scores, rows = nearest_rows(centers, centers, _NEIGHBOURS, ranks)
    del centers
    left = torch.arange(len(present))[:, None]
    keys = torch.minimum(left, rows) * len(present) + torch.maximum(left, rows)
    once, at = np.unique(keys.reshape(-1).numpy(), return_index=True)
    first, second = once // len(present), once % len(present)
    pairs, at = np.stack([first, second], axis=1)[first != second], at[first != second]
    return present[torch.from_numpy(pairs)], scores.reshape(-1).numpy()[at]


def joined(pairs: Ints, classes: int) -> Ints:
    """For each label the least label that it is one with, through any number of pairs, int64 [C]."""
    root = np.arange(classes)
    for left, right in pairs.tolist():
        ends = []
        for end in (left, right):
            while root[end] != end:
                root[end] = root[root[end]]
                end = int(root[end])
            ends.append(end)
        root[max(ends)] = min(ends)
    for label in range(classes):
        root[label] = root[root[label]]  # its root's root is final: roots are smaller
    return root


class _Groups(NamedTuple):
    """Sums and scatter of groups of pictures, weighted.

    Attributes:
        sums: of their pictures [G, D].
        totals: of their weights [G].
        effective: number of pictures of equal weight that would scatter as much [G].
        scatter: sum over so many pictures of the squares about the mean [G].
        typical: such a square of the whole set.
    """

    sums: Tensor
    totals: Tensor
    effective: Tensor
    scatter: Tensor
    typical: float

    @classmethod
    def of(
        cls, features: Tensor, groups: Tensor, weights: Tensor, sums: Tensor, typical: float | None = None
    ) -> "_Groups":
        """Groups of pictures that have `sums` [G, D], by their numbers in `groups` [N]; -1 there weighs nothing."""
        totals, squares, scatter = torch.zeros(3, len(sums))
        for rows in chunks(len(groups)):
            at, weight = groups[rows].clamp_min(0), weights[rows] * (groups[rows] >= 0)
            totals.index_add_(0, at, weight)
            squares.index_add_(0, at, weight**2)
        totals.clamp_min_(_TINY)
        for rows in chunks(len(groups)):
            at, weight = groups[rows].clamp_min(0), weights[rows] * (groups[rows] >= 0)
            apart = features[rows] - sums[at] / totals[at, None]
            scatter.index_add_(0, at, weight * apart.square().sum(dim=1))
        effective = totals**2 / squares.clamp_min(_TINY)
        scatter *= effective / totals
        free = float((effective - 1).clamp_min(0).sum())
        typical = float(scatter.sum()) / max(free, _TINY) if typical is None else typical
        return cls(sums, totals, effective, scatter, typical)

    def mixed(self, strangers: float) -> Tensor:
        """Whether each group is two people's: its pictures are as unlike as those of two in equal parts, bool [G].

        The mean square about the mean, over all but one picture, is 1 less the mean cosine of two pictures. Half of the
        pairs of two people's pictures have the cosine of one person, and half that of `strangers`.
        """
        limit = 1 - (1 - self.typical + strangers) / 2
        return (self.effective > 1 + _TINY) & (self.scatter >= limit * (self.effective - 1))

    def distances(self, pairs: Tensor) -> Floats:
        """The statistic of pairs of groups [P, 2]."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(pairs), _BLOCK):
            one, other = pairs[start : start + _BLOCK].T
            means, others = (self.sums[each] / self.totals[each, None] for each in (one, other))
            apart = (means - others).square().sum(dim=1)
            share = 1 / self.effective[one].clamp_min(1) + 1 / self.effective[other].clamp_min(1)
            free = (self.effective[one] - 1).clamp_min(0) + (self.effective[other] - 1).clamp_min(0) + _PRIOR
            pooled = (self.scatter[one] + self.scatter[other] + _PRIOR * self.typical) / free
            parts.append((apart / share / pooled.clamp_min(_TINY)).numpy())
        return np.concatenate(parts)


def _strangers(cores: Cores) -> float:
    """Mean cosine of pictures of two identities."""
    weights = cores.weight_sums.double()
    total, squares = torch.zeros(cores.sums.shape[1], dtype=torch.float64), 0.0
    for rows in chunks(len(cores.sums)):
        sums = cores.sums[rows].double()
        total += sums.sum(dim=0)
        squares += float(sums.square().sum())
    products = float(total.square().sum()) - squares
    return products / max(float(weights.sum() ** 2 - weights.square().sum()), _TINY)


def _halves(features: Tensor, cores: Cores, typical: float) -> Floats:
    """Distances of the halves of identities that are split at random."""
    random = np.random.default_rng(_SEED)
    large = np.flatnonzero(cores.counts.numpy() >= _LEAST_SPLIT)
    chosen = random.choice(large, min(_SPLIT, len(large)), replace=False)
    place = np.full(len(cores.counts) + 1, -1)  # the last is nobody's
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[cores.labels.numpy()] >= 0)
    identity = place[cores.labels.numpy()[rows]]
    order = np.lexsort((random.random(len(rows)), identity))
    pictures, identity = torch.from_numpy(rows[order]), identity[order]
    within = np.arange(len(identity)) - np.searchsorted(identity, identity, side="left")
    half = torch.from_numpy(2 * identity + within % 2)
    rows_of, weights = features[pictures], cores.weights[pictures]
    sums = torch.zeros(2 * len(chosen), features.shape[1]).index_add_(0, half, weights[:, None] * rows_of)
    groups = _Groups.of(rows_of, half, weights, sums, typical)
    pairs = torch.arange(2 * len(chosen)).reshape(-1, 2)
    return groups.distances(pairs[(groups.effective[pairs] > 0).all(dim=1)])
