"""Retrieval: how the whole list of a probe's gallery is ordered, exactly, by blocks and over ranks.

A probe's mates are the gallery entries of its own label, n of them; p_1 < ... < p_n are their places in the gallery,
ordered by falling score.

    R@k           share of probes with p_1 <= k
    mAP           mean over probes of 1/n sum_i i / p_i
    mAP@R         mean of 1/n sum_i [p_i <= n] i / p_i; Musgrave, Belongie, Lim, "A Metric Learning Reality Check"
                  (ECCV 2020), section 2.3
    R-precision   mean share of the first n places that mates have
    mINP          mean of n / p_n; Ye et al., "Deep Learning for Person Re-Identification" (TPAMI 2022), section 4.1

Where scores are equal, mates come last: a model that gives every picture the same embedding gets no credit. mAP alone
takes equal scores as one place, as scikit-learn's `average_precision_score` does: i and p_i count all entries that
score at least as much.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.embeddings import rank_slice
from dist_train.runtime.matmul import matmul
from dist_train.runtime.ranks import ALONE, Ranks

KS = (1, 5, 10, 100, 1000)
BLOCK_SCORES = 1 << 24  # scores in memory at one time, 64 MB
_FIGURES = 6  # of a probe, see `_judge_probe`

Scores = Callable[[slice], Tensor]
"""Some of the probes [q] -> their scores with the whole gallery [q, N], float32; may be written to."""


@dataclass(frozen=True)
class RetrievalFigures:
    """What a way to order galleries achieves.

    Attributes:
        recall: R@k by k, up to the size of the gallery.
        mean_ap: mAP.
        map_at_r: mAP@R.
        r_precision: R-precision.
        minp: mINP.
    """

    recall: dict[int, float]
    mean_ap: float
    map_at_r: float
    r_precision: float
    minp: float

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "recall": {str(k): share for k, share in self.recall.items()},
            "map": self.mean_ap,
            "map_at_r": self.map_at_r,
            "r_precision": self.r_precision,
            "minp": self.minp,
        }


@dataclass(frozen=True)
class Searches:
    """The probes and the gallery of a set.

    Attributes:
        probes: unit rows [P, D], the same on every rank.
        labels: of the probes, int64 [P]; -1 is nobody's.
        gallery: unit rows [N, D], those of one label beside each other.
        gallery_labels: rising, int64 [N].
        itself: row of each probe that is itself in the gallery, int64 [P]; None where the two are apart.
        groups: what mates may not share with their probe, int64 [P]; None: nothing.
        gallery_groups: the same of the gallery, int64 [N].
    """

    probes: Tensor
    labels: Tensor
    gallery: Tensor
    gallery_labels: Tensor
    itself: Tensor | None = None
    groups: Tensor | None = None
    gallery_groups: Tensor | None = None

    @property
    def entries(self) -> int:
        """Gallery entries that a probe is compared with, at most."""
        return len(self.gallery) - (self.itself is not None)


@dataclass(frozen=True)
class Judged:
    """What searches gave.

    Attributes:
        figures: over all mated probes.
        mated: whether a probe has a mate, bool [P].
        precision: AP of each probe, 0 without a mate, float64 [P].
    """

    figures: RetrievalFigures
    mated: Tensor
    precision: Tensor


def ordered(
    features: Tensor, labels: Tensor, is_probe: Sequence[bool] | None = None, groups: Tensor | None = None
) -> Searches:
    """The searches of a set, whose gallery is sorted by label.

    Args:
        features: unit rows [N, D].
        labels: int64 [N]; -1: none, so that the picture has no mate.
        is_probe: for each picture, whether it is a probe, else it belongs to the gallery; None: each picture is
            searched for among all others.
        groups: gallery entries of a probe's own label and group are left out, int64 [N].

    Raises:
        UserError: no probes, or too few entries.
    """
    probe = torch.ones(len(labels), dtype=torch.bool) if is_probe is None else torch.tensor(is_probe)
    rows = torch.arange(len(labels)) if is_probe is None else (~probe).nonzero().squeeze(1)
    if not bool(probe.any()) or len(rows) < (2 if is_probe is None else 1):
        raise UserError(f"{int(probe.sum())} probes and {len(rows)} gallery entries; expected some of both")
    rows = rows[torch.argsort(labels[rows], stable=True)]
    itself = None if is_probe is not None else torch.argsort(rows)
    near, far = (None, None) if groups is None else (groups[probe], groups[rows])
    probes = features if is_probe is None else features[probe]
    return Searches(probes, labels[probe], features[rows], labels[rows], itself, near, far)


def cosines(searches: Searches) -> Scores:
    """The scores by which galleries are ordered at first: cosines."""
    probes, gallery = searches.probes, searches.gallery

    def scores(rows: slice) -> Tensor:
        block = probes[rows]
        return matmul(block, gallery.T, out=torch.empty(len(block), len(gallery)))

    return scores


def judge_retrieval(searches: Searches, scores: Scores, ranks: Ranks = ALONE) -> Judged:
    """The figures over all probes that have a mate; each rank judges a part of the probes.

    Collective (with several ranks): one all-reduce of [P, 6] float64.

    Raises:
        UserError: no probe has a mate; on every rank.
    """
    found = torch.zeros(len(searches.probes), _FIGURES, dtype=torch.float64)
    start, stop = rank_slice(len(found), ranks.rank, ranks.world_size)
    step = block_of(len(searches.gallery))
    for first in range(start, stop, step):
        rows = slice(first, min(first + step, stop))
        found[rows] = torch.from_numpy(_judge_block(searches, rows, scores(rows)))
    if ranks.control_group is not None:
        dist.all_reduce(found, group=ranks.control_group)
    mated = found[found[:, 0] > 0]
    if not len(mated):
        raise UserError("no probe has a mate: no picture in the gallery shares its label")
    first_place = mated[:, 1]
    recall = {k: float((first_place <= k).double().mean()) for k in KS if k <= searches.entries}
    figures = RetrievalFigures(recall, *mated[:, 2:].mean(dim=0).tolist())
    return Judged(figures, found[:, 0] > 0, found[:, 2])


def block_of(entries: int) -> int:
    """How many probes are compared with a gallery of so many entries at one time."""
    return max(1, BLOCK_SCORES // entries)


def _judge_block(searches: Searches, rows: slice, scores: Tensor) -> NDArray[np.float64]:
    """The figures of some probes [q, 6], a thread for each core; `scores` [q, N] are overwritten."""
    labels = searches.labels[rows]
    low = torch.searchsorted(searches.gallery_labels, labels, side="left")
    high = torch.searchsorted(searches.gallery_labels, labels, side="right")
    high = torch.where(labels < 0, low, high)  # pictures of nobody are not each other's mates
    values = scores.numpy()
    if searches.itself is not None:
        values[np.arange(len(values)), searches.itself[rows].numpy()] = -np.inf
    bounds = np.stack([low.numpy(), high.numpy()], axis=1).tolist()
    result = np.zeros((len(values), _FIGURES))

    def judge(part: range) -> None:
        for number in part:
            first, last = bounds[number]
            own = values[number, first:last]
            if searches.groups is not None and searches.gallery_groups is not None:
                others = searches.gallery_groups[first:last] != searches.groups[rows.start + number]
                own = own[others.numpy()]
            mates = np.sort(own[own > -np.inf])
            values[number, first:last] = -np.inf
            result[number] = _judge_probe(mates, values[number])

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        parts = [range(*rank_slice(len(values), thread, threads)) for thread in range(threads)]
        list(pool.map(judge, parts))
    return result


def _judge_probe(mates: NDArray[np.float32], others: NDArray[np.float32]) -> tuple[float, ...]:
    """Number of mates, place of the first, AP, AP@R, R-precision and INP of one probe; zeros without a mate.

    Args:
        mates: their scores, rising [n].
        others: scores of all other entries [N]; -inf for those that are left out.
    """
    count = len(mates)
    if not count:
        return (0.0,) * _FIGURES
    rivals = others[others >= mates[0]]  # few for most probes of a good model
    rivals.sort()
    mates = mates[::-1]
    before = len(rivals) - np.searchsorted(rivals, mates, side="left")  # others that score at least as much
    number = np.arange(1, count + 1)
    places = number + before
    as_good = count - np.searchsorted(mates[::-1], mates, side="left")  # mates that score at least as much
    precision = float((as_good / (as_good + before)).mean())
    inside = places <= count
    at_r = float((number[inside] / places[inside]).sum()) / count
    return count, places[0], precision, at_r, float(inside.mean()), count / float(places[-1])
