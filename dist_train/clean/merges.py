"""Identities that are one: two labels whose pictures scatter about one centre.

For the means of a and b pictures, in the space where pictures of an identity scatter with variance 1 in all D
directions, |mean - other mean|^2 / (1/a + 1/b) / D is 1 on average if both show one person: Hotelling's statistic, with
the scatter of all identities in place of their own. How it is distributed in this set is seen on identities that are
split at random. Of other people it is large, but for look-alikes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dist_train.clean.cores import Cores, whitening
from dist_train.clean.mixture import Floats, Mixture, mixture
from dist_train.clean.neighbours import nearest_rows
from dist_train.data.counters import Ints
from dist_train.runtime.ranks import Ranks

_NEIGHBOURS = 8  # centres that are looked at for each, itself among them
_SPLIT = 5000  # identities that are split at random
_LEAST_SPLIT = 4  # pictures of one that is
_BLOCK = 1 << 15
_SEED = 0


class Merges(NamedTuple):
    """Pairs of identities that were compared.

    Attributes:
        pairs: labels, the one with fewer pictures first, int64 [P, 2].
        cosine: of their centres [P].
        distance: the statistic; 1 on average for one person [P].
        mixture: what the distances say.
        cut: pairs at or below it are one.
    """

    pairs: Ints
    cosine: Floats
    distance: Floats
    mixture: Mixture
    cut: float

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
    present = (cores.counts > 0).nonzero().squeeze(1)
    centers = cores.centers[present]
    scores, rows = nearest_rows(centers, centers, _NEIGHBOURS, ranks)
    left = torch.arange(len(present))[:, None].expand_as(rows)
    pairs = torch.stack([torch.minimum(left, rows), torch.maximum(left, rows)], dim=-1).reshape(-1, 2)
    keys, at = np.unique((pairs[:, 0] * len(present) + pairs[:, 1]).numpy(), return_index=True)
    at = at[keys // len(present) != keys % len(present)]
    both, cosine = present[pairs[torch.from_numpy(at)]], scores.reshape(-1).numpy()[at]
    whiten = whitening(features, cores)
    distance = _distances(cores.means(), cores.effective, both, whiten)
    found = mixture(distance, _halves(features, cores, whiten), certainty)
    counts = cores.counts[both]
    both = torch.where((counts[:, :1] > counts[:, 1:]), both.flip(1), both)
    return Merges(both.numpy(), cosine, distance, found, found.cut if cut is None else cut)


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


def _distances(means: Tensor, effective: Tensor, pairs: Tensor, whiten: Tensor) -> Floats:
    parts = []
    for start in range(0, len(pairs), _BLOCK):
        one, other = pairs[start : start + _BLOCK].T
        apart = ((means[one] - means[other]) @ whiten).square().mean(dim=1)
        parts.append(apart / (1 / effective[one].clamp_min(1) + 1 / effective[other].clamp_min(1)))
    return np.concatenate([np.empty(0, np.float32), *(part.numpy() for part in parts)])


def _halves(features: Tensor, cores: Cores, whiten: Tensor) -> Floats:
    """Distances of the halves of identities that are split at random."""
    random = np.random.default_rng(_SEED)
    large = np.flatnonzero(cores.counts.numpy() >= _LEAST_SPLIT)
    chosen = random.choice(large, min(_SPLIT, len(large)), replace=False)
    place = np.full(len(cores.counts) + 1, -1)  # the last is nobody's
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[cores.labels.numpy()] >= 0)
    identity = place[cores.labels.numpy()[rows]]
    order = np.lexsort((random.random(len(rows)), identity))
    rows, identity = rows[order], identity[order]
    within = np.arange(len(rows)) - np.searchsorted(identity, identity, side="left")
    half = torch.from_numpy(2 * identity + within % 2)
    weights = cores.weights[torch.from_numpy(rows)]
    totals = torch.zeros(2 * len(chosen)).index_add_(0, half, weights)
    squares = torch.zeros(2 * len(chosen)).index_add_(0, half, weights**2)
    sums = torch.zeros(2 * len(chosen), features.shape[1])
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        sums.index_add_(0, half[part], weights[part, None] * features[torch.from_numpy(rows[part])])
    pairs = torch.arange(2 * len(chosen)).reshape(-1, 2)
    pairs = pairs[(totals[pairs] > 0).all(dim=1)]
    effective = totals**2 / squares.clamp_min(torch.finfo(torch.float32).tiny)
    return _distances(sums / totals.clamp_min(1e-12)[:, None], effective, pairs, whiten)
