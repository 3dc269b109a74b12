"""Clusters by mean cosine: pairs of clusters become one as long as all their pictures' pairs agree on the average.

The mean cosine over all pairs of pictures of clusters A and B is the inner product of their sums of unit embeddings
over |A|·|B|, so this is agglomeration with average linkage, which does not chain: one wrong pair of pictures above the
threshold joins no two clusters. It goes by rounds of falling thresholds, in each of which every cluster joins its
nearest one (Monath et al. 2021, "Scalable Hierarchical Agglomerative Clustering", section 3), and not pair by pair.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.cluster.components import best_links, roots_of
from dist_train.data.counters import Ints
from dist_train.runtime.distinct import distinct

_LEVELS = 30  # thresholds from 1 down to the one that was asked for
_EDGE_BLOCK = 8192  # edges whose two sums [2, n, D] are held at a time


class Clusters:
    """Clusters on their way to larger ones.

    Args:
        sums: float32 [M, D] of the unit embeddings of each cluster; changed.
        sizes: int64 [M] pictures of each.

    Attributes:
        sums: as given, of the clusters that are left; other rows mean nothing.
        sizes: as given; 0 for a cluster that is part of another.
        roots: int64 [M] the cluster that each one is part of by now.
    """

    def __init__(self, sums: Tensor, sizes: Ints) -> None:
        self.sums = sums
        self.sizes = sizes
        self.roots = np.arange(len(sizes))

    def mean_cosines(self, left: Ints, right: Ints) -> NDArray[np.float32]:
        """Mean cosine over all pairs of pictures of clusters `left` [E] and `right` [E]."""
        out = np.empty(len(left), np.float32)
        for start in range(0, len(left), _EDGE_BLOCK):
            some = slice(start, start + _EDGE_BLOCK)
            ends = [torch.from_numpy(each[some]).to(self.sums.device) for each in (left, right)]
            out[some] = torch.einsum("ed,ed->e", self.sums[ends[0]], self.sums[ends[1]]).cpu().numpy()
        out /= (self.sizes[left] * self.sizes[right]).astype(np.float32)
        return out

    def join(self, roots: Ints) -> None:
        """Let each cluster become part of cluster `roots` [M], which stays."""
        parts = np.flatnonzero(roots != np.arange(len(roots)))
        wholes = roots[parts]
        device = self.sums.device
        for start in range(0, len(parts), _EDGE_BLOCK):
            some = slice(start, start + _EDGE_BLOCK)
            given = self.sums[torch.from_numpy(parts[some]).to(device)]
            self.sums.index_add_(0, torch.from_numpy(wholes[some]).to(device), given)
        np.add.at(self.sizes, wholes, self.sizes[parts])
        self.sizes[parts] = 0
        self.roots = roots[self.roots]


def agglomerate(
    clusters: Clusters,
    left: Ints,
    right: Ints,
    cosines: NDArray[np.float32],
    threshold: float,
    tick: Callable[[int], object] = lambda joined: None,
) -> None:
    """Join the clusters along edges until no edge's mean cosine reaches `threshold`.

    Args:
        clusters: changed.
        left: [E] one end of each edge, each pair of clusters at most once.
        right: [E] the other end.
        cosines: [E] mean cosine of the two.
        threshold: least mean cosine of clusters that are joined.
        tick: is told how many clusters became part of others.
    """
    count = len(clusters.sizes)
    for level in np.linspace(1, threshold, _LEVELS, dtype=np.float32).tolist():
        while True:
            near = np.flatnonzero(cosines >= level)
            if not len(near):
                break
            roots = roots_of(best_links(left[near], right[near], cosines[near], count))
            clusters.join(roots)
            tick(int((roots != np.arange(count)).sum()))
            left, right, cosines = _followed(clusters, roots, left, right, cosines)


def _followed(
    clusters: Clusters, roots: Ints, left: Ints, right: Ints, cosines: NDArray[np.float32]
) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """The edges between clusters after these became parts of `roots` [M]; those between changed ones are new."""
    numbers = np.arange(len(roots))
    changed = roots != numbers
    changed[roots[changed]] = True
    moved = changed[left] | changed[right]
    ends = np.sort(np.stack([roots[left[moved]], roots[right[moved]]]), axis=0)
    pairs = distinct(ends[0, ends[0] != ends[1]] * len(roots) + ends[1, ends[0] != ends[1]])
    new_left, new_right = np.divmod(pairs, len(roots))
    new = clusters.mean_cosines(new_left, new_right)
    stay = ~moved
    return (
        np.concatenate([left[stay], new_left]),
        np.concatenate([right[stay], new_right]),
        np.concatenate([cosines[stay], new]),
    )
