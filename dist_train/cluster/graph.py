"""Clusters by a graph of near neighbours: the exact search is shared by the ranks, the joining is done by the first."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.cluster.agglomerate import Clusters, agglomerate
from dist_train.cluster.kept import Edges, KeptBlocks
from dist_train.cluster.neighbours import near_rows
from dist_train.data.counters import Ints
from dist_train.evaluate.search import QUERY_BLOCK
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks

NEIGHBOURS = 32
"""Nearest clusters that each one looks at in a search; what is beyond them is found by the search after it."""


def cluster_by_graph(
    features: Tensor, threshold: float, ranks: Ranks, quiet: bool = False, keep: Path | None = None
) -> Ints:
    """Cluster of each picture, int64 [N], numbered by their first pictures; a collective, equal on all ranks.

    The nearest neighbours above the threshold are searched, clusters joined along them (`agglomerate`), and then those
    of the joined clusters, until no two clusters have a mean cosine over all their pairs of pictures that reaches the
    threshold. Memory is three times the embeddings'; the first search takes N² · D multiplications.

    Args:
        features: float32 [N, D] of unit length, the same on all ranks, where the search is to be done.
        threshold: least mean cosine of clusters that are joined.
        ranks: share each search.
        quiet: show no bar.
        keep: directory of finished blocks of the first search, from which a stopped call goes on; None keeps nothing.
    """
    stored = None
    if keep is not None:
        about = f"{threshold!r} {NEIGHBOURS} {QUERY_BLOCK}"
        blocks = stored = KeptBlocks(keep, features, about, QUERY_BLOCK * (NEIGHBOURS + 1))
        ranks.agree(lambda: None if ranks.rank else blocks.begin())
    labels = np.arange(len(features))
    sums, sizes = features.clone(), np.ones(len(features), dtype=np.int64)
    hidden = quiet or ranks.rank != 0
    while True:
        means = sums / torch.from_numpy(sizes).to(sums)[:, None]
        edges = _edges(means, threshold, ranks, hidden, stored)
        stored = None  # searches of joined clusters take little time
        if not len(edges[0]):
            return first_seen(labels)
        del means
        roots = None
        if ranks.rank == 0:
            clusters = Clusters(sums, sizes)
            with progress_bar(
                total=len(sizes) - 1, unit=" joined", desc="join", disable=hidden, mininterval=0.5
            ) as bar:
                agglomerate(clusters, *edges, threshold, bar.update)
            roots = clusters.roots
        roots = ranks.gather(roots)[0]
        if roots is None:
            raise ValueError("rank 0 has told nothing")
        kept, new = np.unique(roots, return_inverse=True)
        if ranks.rank:
            clusters = Clusters(sums, sizes)
            clusters.join(roots)
        labels = new[labels]
        sums, sizes = clusters.sums[torch.from_numpy(kept).to(sums.device)], clusters.sizes[kept]


def first_seen(labels: Ints) -> Ints:
    """The same clusters, int64 [N], numbered from 0 in the order of their first pictures."""
    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[places]


def _edges(
    means: Tensor, threshold: float, ranks: Ranks, hidden: bool, kept: KeptBlocks | None
) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Pairs of clusters whose mean cosine reaches `threshold`, each once: two ends [E], and the cosines [E]."""
    count = len(means)
    blocks = -(-count // QUERY_BLOCK)

    def find(block: int) -> Edges:
        low = block * QUERY_BLOCK
        some = means[low : low + QUERY_BLOCK]
        own, others, cosines = near_rows(some, means, NEIGHBOURS + 1, threshold)  # itself may be one of them
        far = others != own + low
        ends = torch.stack([own[far] + low, others[far]]).cpu().numpy()
        return ends.min(axis=0) * count + ends.max(axis=0), cosines[far].cpu().numpy()

    # Blocks are the same on every number of ranks, so that those that are kept are of use to any.
    mine = range(*(blocks * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1)))
    found: list[Edges] = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    total = min(mine.stop * QUERY_BLOCK, count) - min(mine.start * QUERY_BLOCK, count)
    with progress_bar(total=total, unit=" rows", desc="search", disable=hidden, mininterval=0.5) as bar:
        for block in mine:
            found.append(find(block) if kept is None else kept.block(block, partial(find, block)))
            bar.update(min(QUERY_BLOCK, count - block * QUERY_BLOCK))
    every = ranks.gather(tuple(np.concatenate(parts) for parts in zip(*found, strict=True)))
    pairs, cosines_of = (np.concatenate(parts) for parts in zip(*every, strict=True))
    pairs, first = np.unique(pairs, return_index=True)
    left, right = np.divmod(pairs, count)
    return left, right, cosines_of[first]
