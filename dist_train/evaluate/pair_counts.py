"""Exact counts over all pairs of a set's pictures, in two passes over blocks of scores, split over ranks.

Every unordered pair is scored once: half of the square, in blocks of one shape, so that both passes and any number of
ranks meet the same numbers. No scores are kept, only counts of them (see `score_keys`) and a thinned list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.score_keys import (
    HALF,
    Place,
    count_prefixes,
    count_rests,
    prefixes,
    ranked_from_top,
    score_at,
)
from dist_train.evaluate.search import TIE, score_blocks
from dist_train.evaluate.thinned import PairSample, Thinning
from dist_train.runtime.ranks import ALONE, Ranks

BLOCK = 2048


class Ordered(NamedTuple):
    """The labelled pictures of a set, those of an identity side by side.

    Attributes:
        features: unit rows [N, D], contiguous.
        identity: number of the identity of each, 0 .. I - 1, rising, int64 [N].
        sizes: pictures of each identity, int64 [I].
        order: where each was in the set, int64 [N].
    """

    features: Tensor
    identity: np.ndarray
    sizes: np.ndarray
    order: np.ndarray

    @property
    def genuine_pairs(self) -> int:
        """Number of pairs of one identity."""
        return int((self.sizes * (self.sizes - 1) // 2).sum())

    @property
    def impostor_pairs(self) -> int:
        """Number of pairs of two identities."""
        return len(self.identity) * (len(self.identity) - 1) // 2 - self.genuine_pairs


@dataclass(frozen=True)
class Threshold:
    """What counting says of one demanded rate.

    Attributes:
        barred: the best impostor score that must not match any more; pairs match above it.
        false_matches: impostor pairs above it.
        false_non_matches: genuine pairs that are not above it.
    """

    barred: float
    false_matches: int
    false_non_matches: int


@dataclass(frozen=True)
class PairCounts:
    """Counts over all pairs, equal on every rank.

    Attributes:
        genuine: pairs of one identity by prefix of their score, int64 [65,536], rising.
        impostor: pairs of two identities, likewise.
        thresholds: by demanded rate.
        genuine_sample: some of the pairs of one identity, denser among the low scores.
        impostor_sample: some of the others, denser among the high scores; lacks the lowest.
        places: of the best mate of each picture among all other pictures, 1 is first, after others that score the same,
            to within `TIE`; in the order of `Ordered`, 0 without a mate. int64 [N].
    """

    genuine: np.ndarray
    impostor: np.ndarray
    thresholds: dict[float, Threshold]
    genuine_sample: PairSample
    impostor_sample: PairSample
    places: np.ndarray


def order_by_identity(features: Tensor, labels: Tensor, name: str) -> Ordered:
    """The pictures with a label, ordered by it.

    Args:
        features: unit rows [N, D].
        labels: int64 [N]; -1 for none.
        name: of the set, for messages.

    Raises:
        UserError: no pair of one identity or none of two.
        WorkError: embeddings that are not finite.
    """
    if len(features) != len(labels):
        raise UserError(f"{name}: {len(labels)} labels for {len(features)} pictures; expected one each")
    if len(bad := (~torch.isfinite(features).all(dim=1)).nonzero()):
        raise WorkError(f"{name}: the embedding of picture {int(bad[0])} is not finite")
    order = torch.argsort(labels, stable=True)[int((labels < 0).sum()) :]
    _, identity, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    ordered = Ordered(features[order].float().contiguous(), identity.numpy(), sizes.numpy(), order.numpy())
    told = f"{name}: {len(order):,} pictures with a label, of {len(sizes):,} identities"
    if len(sizes) < 2:
        raise UserError(f"{told}; all pairs need two identities or more, since false matches are of two")
    if not ordered.genuine_pairs:
        raise UserError(f"{told}, one each; all pairs need an identity with two pictures or more")
    return ordered


def allowed_matches(rate: float, pairs: int) -> int:
    """How many of `pairs` may match so that their share does not exceed `rate`."""
    return int(rate * pairs * (1 + 1e-12))  # 0.1 x 30 is a little less than 3


def count_pairs(ordered: Ordered, fmrs: Sequence[float], ranks: Ranks = ALONE, block: int = BLOCK) -> PairCounts:
    """Count the scores of all pairs. A collective.

    Args:
        ordered: the pictures, the same on every rank.
        fmrs: demanded shares of false matches, in (0, 1).
        ranks: the processes that share the work.
        block: rows and columns of a block of scores.
    """
    first = _First(len(ordered.identity))
    for part in _blocks(ordered, ranks, block):
        first.add(part)
    for prefixed in (first.genuine, first.impostor):
        _reduce(prefixed, dist.ReduceOp.SUM, ranks)
    _reduce(first.mate, dist.ReduceOp.MAX, ranks)

    found = {rate: ranked_from_top(first.impostor, allowed_matches(rate, ordered.impostor_pairs)) for rate in fmrs}
    wanted = np.array(sorted({prefix for prefix, _ in found.values()}))
    second = _Second(first, wanted, max(fmrs))
    for part in _blocks(ordered, ranks, block):
        second.add(part)
    for table in (second.genuine, second.impostor, second.better):
        _reduce(table, dist.ReduceOp.SUM, ranks)

    thresholds = {}
    for rate, (prefix, rank) in found.items():
        slot = int(np.searchsorted(wanted, prefix))
        rest, _ = ranked_from_top(second.impostor[slot], rank)
        thresholds[rate] = Threshold(
            float(score_at(Place(prefix, rest))),
            int(first.impostor[prefix + 1 :].sum() + second.impostor[slot, rest + 1 :].sum()),
            int(first.genuine[:prefix].sum() + second.genuine[slot, : rest + 1].sum()),
        )
    places = np.where(np.isfinite(first.mate), second.better + 1, 0)
    return PairCounts(
        genuine=first.genuine,
        impostor=first.impostor,
        thresholds=thresholds,
        genuine_sample=second.genuine_sample.gathered(ordered.identity, ranks),
        impostor_sample=second.impostor_sample.gathered(ordered.identity, ranks),
        places=places,
    )


class _Block(NamedTuple):
    """Scores of pairs of pictures rows.start + i, columns.start + j.

    Attributes:
        rows: of the set.
        columns: of the set.
        scores: float32 [q, n]; may be written to.
        genuine: flat numbers of the pairs of one identity.
        impostor: flat numbers of the pairs of two; None: all.
    """

    rows: slice
    columns: slice
    scores: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray | None

    def impostor_scores(self) -> np.ndarray:
        flat = self.scores.reshape(-1)
        return flat if self.impostor is None else flat[self.impostor]

    def pairs(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the pictures of pairs."""
        row, column = np.divmod(flat, self.scores.shape[1])
        return row + self.rows.start, column + self.columns.start


def _blocks(ordered: Ordered, ranks: Ranks, block: int) -> Iterator[_Block]:
    """This rank's blocks on and above the diagonal."""
    starts = range(0, len(ordered.identity), block)
    # There and back: a rank with a long stripe of the triangle gets a short one too.
    turn = (*range(ranks.world_size), *reversed(range(ranks.world_size)))
    for number, start in enumerate(starts):
        if turn[number % len(turn)] != ranks.rank:
            continue
        stripe, rest = ordered.features[start : start + block], ordered.features[start:]
        rows = slice(start, start + len(stripe))
        for _, part, scores in score_blocks(stripe, rest, block, block):
            columns = slice(start + part.start, start + part.stop)
            scores += 0.0  # no negative zeros
            yield _sorted_out(rows, columns, scores.numpy(), ordered.identity)


def _sorted_out(rows: slice, columns: slice, scores: np.ndarray, identity: np.ndarray) -> _Block:
    left, right = identity[rows], identity[columns]
    if left[-1] < right[0]:
        return _Block(rows, columns, scores, np.empty(0, np.int64), None)
    same = left[:, None] == right
    above = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
    return _Block(rows, columns, scores, np.flatnonzero(same & above), np.flatnonzero(~same & above))


class _First:
    """Counts by prefix, and the score of each picture's best mate."""

    def __init__(self, pictures: int) -> None:
        self.genuine = np.zeros(HALF, np.int64)
        self.impostor = np.zeros(HALF, np.int64)
        self.mate = np.full(pictures, -np.inf, np.float32)

    def add(self, block: _Block) -> None:
        self.impostor += count_prefixes(block.impostor_scores())
        if len(block.genuine):
            scores = block.scores.reshape(-1)[block.genuine]
            self.genuine += count_prefixes(scores)
            for pictures in block.pairs(block.genuine):
                np.maximum.at(self.mate, pictures, scores)


class _Second:
    """Counts within the prefixes where thresholds are, better scores than the best mate's, and samples."""

    def __init__(self, first: _First, wanted: np.ndarray, largest: float) -> None:
        self._wanted = wanted
        self._as_good = np.where(np.isfinite(first.mate), first.mate - TIE, np.inf).astype(np.float32)
        self.genuine = np.zeros((len(wanted), HALF), np.int64)
        self.impostor = np.zeros((len(wanted), HALF), np.int64)
        self.better = np.zeros(len(first.mate), np.int64)
        self.genuine_sample = Thinning(first.genuine, from_top=False)
        self.impostor_sample = Thinning(first.impostor, from_top=True, depth=largest)

    def add(self, block: _Block) -> None:
        flat = block.scores.reshape(-1)
        seed = (block.rows.start, block.columns.start)
        kinds = (
            (block.impostor, self.impostor, self.impostor_sample),
            (block.genuine, self.genuine, self.genuine_sample),
        )
        for numbers, counts, sample in kinds:
            scores = flat if numbers is None else flat[numbers]
            if not len(scores):
                continue
            prefix = prefixes(scores)
            counts += count_rests(scores, prefix, self._wanted)
            chosen, shares = sample.choose(prefix, seed)
            sample.keep(scores[chosen], *block.pairs(chosen if numbers is None else numbers[chosen]), shares)
        self._count_better(block)

    def _count_better(self, block: _Block) -> None:
        scores = torch.from_numpy(block.scores)
        if block.impostor is not None:  # pairs of one identity cannot come before the best of them
            others = torch.full_like(scores, -torch.inf)
            others.view(-1)[block.impostor] = scores.view(-1)[block.impostor]
            scores = others
        for axis, pictures in ((1, block.rows), (0, block.columns)):
            as_good = torch.from_numpy(self._as_good[pictures])
            beaten = (scores.amax(dim=axis) >= as_good).nonzero().squeeze(1)
            better = scores.index_select(1 - axis, beaten) >= as_good[beaten].unsqueeze(axis)
            self.better[pictures][beaten.numpy()] += better.sum(dim=axis).numpy()


def _reduce(values: np.ndarray, operation: dist.ReduceOp.RedOpType, ranks: Ranks) -> None:
    if ranks.control_group is not None:
        dist.all_reduce(torch.from_numpy(values), operation, group=ranks.control_group)
