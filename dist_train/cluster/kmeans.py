"""Clusters about centres: spherical k-means, whose rows are split over the ranks and whose centres every rank has.

Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data Using Clustering", section 3: every picture
goes to the centre with the largest cosine, every centre becomes the direction of the sum of its pictures.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.search import nearest
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 100
_STILL = 1e-3  # share of the pictures that change their cluster in a round, below which the rounds end


class Assigned(NamedTuple):
    """The clusters of one rank's pictures.

    Attributes:
        labels: int64 [n, L] the L centres that are nearest to each picture, the nearest first.
        cosines: float32 [n, L] with them.
    """

    labels: Tensor
    cosines: Tensor


def cluster_by_kmeans(
    features: Tensor, clusters: int, seed: int, ranks: Ranks, labels: int = 1, quiet: bool = False
) -> Assigned:
    """Clusters of this rank's pictures; a collective.

    Centres start from pictures that `seed` draws from all ranks' pictures. A cluster that is left without pictures
    starts again from the one that is farthest from its centre. On any number of ranks the result is the same, up to
    the rounding of sums.

    Args:
        features: float32 [n, D] of unit length, this rank's part in the order of ranks.
        clusters: K, the number of centres.
        seed: of the first centres.
        ranks: hold the other parts.
        labels: L, how many clusters each picture is given.
        quiet: show no bar.

    Raises:
        UserError: more clusters than pictures, or labels than clusters.
    """
    counts = ranks.gather(len(features))
    total, first = sum(counts), sum(counts[: ranks.rank])
    if not 1 <= labels <= clusters <= total:
        raise UserError(
            f"{total} pictures, {clusters} clusters, {labels} labels a picture; expected labels <= clusters <= pictures"
        )
    drawn = np.random.default_rng(seed).choice(total, clusters, replace=False)
    centers = _rows(features, np.sort(drawn), first, ranks)
    before = torch.full((len(features),), -1, dtype=torch.int64, device=features.device)
    with progress_bar(total=_MOST_ROUNDS, unit=" rounds", desc="k-means", disable=quiet or ranks.rank != 0) as bar:
        for _ in range(_MOST_ROUNDS):
            cosines, found = (each.squeeze(1) for each in _nearest(features, centers, 1))
            moved = int(_summed((found != before).sum(), ranks))
            bar.set_postfix(moved=moved, refresh=False)
            bar.update()
            sizes = _summed(torch.bincount(found, minlength=clusters), ranks)
            if moved <= _STILL * total and bool((sizes > 0).all() | (moved == 0)):
                break
            centers = _moved(features, found, centers, ranks)
            _refill(centers, sizes, features, cosines, found, first, ranks)
            before = found
        else:
            logger.warning(
                "k-means: %d of %d pictures still change their cluster after %d rounds", moved, total, _MOST_ROUNDS
            )
    cosines, found = _nearest(features, centers, labels)
    return Assigned(found, cosines)


def _nearest(features: Tensor, centers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and numbers [n, k] of the nearest centres; a rank may have no pictures."""
    if not len(features):
        return features.new_empty((0, k)), torch.empty((0, k), dtype=torch.int64, device=features.device)
    return nearest(features, centers, k)


def _summed(value: Tensor, ranks: Ranks) -> Tensor:
    if ranks.world_size > 1:
        dist.all_reduce(value, group=ranks.group)
    return value


def _rows(features: Tensor, numbers: np.ndarray, first: int, ranks: Ranks) -> Tensor:
    """Pictures [m, D] by their numbers [m] over all ranks, on every rank."""
    out = features.new_zeros((len(numbers), features.shape[1]))
    own = (numbers >= first) & (numbers < first + len(features))
    places = torch.from_numpy(np.flatnonzero(own)).to(features.device)
    out[places] = features[torch.from_numpy(numbers[own] - first).to(features.device)]
    return _summed(out, ranks)


def _moved(features: Tensor, found: Tensor, centers: Tensor, ranks: Ranks) -> Tensor:
    """The directions of the sums of the centres' pictures; a centre whose sum is zero stays."""
    sums = _summed(torch.zeros_like(centers).index_add_(0, found, features), ranks)
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    return torch.where(norms > 0, sums / norms.clamp_min(torch.finfo(norms.dtype).tiny), centers)


def _refill(
    centers: Tensor, sizes: Tensor, features: Tensor, cosines: Tensor, found: Tensor, first: int, ranks: Ranks
) -> None:
    """Put the pictures that are farthest from their centres in place of the centres without any."""
    empty = (sizes == 0).nonzero().squeeze(1)
    if not len(empty):
        return
    spare = cosines.masked_fill(sizes[found] == 1, torch.inf)  # a picture alone leaves another cluster empty
    worst = spare.topk(min(len(empty), len(spare)), largest=False)
    own = list(zip(worst.values.tolist(), (worst.indices + first).tolist(), strict=True))
    every = sorted(pair for part in ranks.gather(own) for pair in part if pair[0] < torch.inf)
    numbers = np.array([number for _, number in every[: len(empty)]], dtype=np.int64)
    centers[empty[: len(numbers)]] = _rows(features, numbers, first, ranks)
