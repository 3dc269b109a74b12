"""A labelled set without roles: all its pairs, or those of a list, at operating points, and each picture searched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.data.pair_list import read_pairs
from dist_train.errors import UserError
from dist_train.evaluate.config import AllPairsConfig, all_pairs_name
from dist_train.evaluate.curves import Histogram, Roc, histogram, roc, sort_scores
from dist_train.evaluate.embedded_set import EmbeddedSet, embed_set
from dist_train.evaluate.identification import paired_products
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.listed_pairs import ListedPairs, find_pairs
from dist_train.evaluate.operating_points import FMRS, OperatingPoint, points_of, points_of_list
from dist_train.evaluate.pair_counts import PairCounts, count_pairs, order_by_identity
from dist_train.evaluate.sameness import note_on_sameness
from dist_train.evaluate.score_keys import lower_edges
from dist_train.evaluate.sets import StoredSet
from dist_train.evaluate.verification import FOLDS, fold_accuracies, fold_bounds
from dist_train.runtime.distinct import distinct
from dist_train.runtime.ranks import ALONE, Ranks

_DRAWN_POINTS = 400
_BINS = 60


@dataclass(frozen=True)
class AllPairsResult:
    """What a model achieves on pairs of a labelled set.

    Attributes:
        name: of the set, and of the list where there is one.
        pictures: that take part.
        identities: of these.
        genuine_pairs: pairs of one identity.
        impostor_pairs: pairs of two.
        points: operating points, FMR falling.
        searched: pictures that have a mate, each searched among all others; 0 for a list.
        rank1: share of these whose best match is a mate; None without any.
        rank5: share with a mate among the best five.
        curve: error rates over thresholds.
        spread: of both kinds of scores.
        notes: what a reader of the figures must know.
        accuracy: of the pairs of a list over its ten folds, each at the threshold that is best on the other nine, as a
            mean and a deviation; None of all pairs, and where folds have one kind of pairs.
    """

    name: str
    pictures: int
    identities: int
    genuine_pairs: int
    impostor_pairs: int
    points: tuple[OperatingPoint, ...]
    searched: int
    rank1: float | None
    rank5: float | None
    curve: Roc
    spread: Histogram
    notes: tuple[str, ...] = ()
    accuracy: tuple[float, float] | None = None

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "pictures": self.pictures,
            "identities": self.identities,
            "genuine_pairs": self.genuine_pairs,
            "impostor_pairs": self.impostor_pairs,
            "operating_points": [point.summary() for point in self.points],
            "searched": self.searched,
            "rank1": self.rank1,
            "rank5": self.rank5,
            "accuracy": self.accuracy,
            "notes": list(self.notes),
        }

    def last_resolved(self) -> OperatingPoint | None:
        """The point of the lowest rate that the set carries; None if it carries none."""
        return min((point for point in self.points if point.resolved), key=lambda point: point.fmr, default=None)


def evaluate_all_pairs(entry: AllPairsConfig, how: Judging) -> AllPairsResult:
    """Judge a model on pairs of a set of shards, over all ranks; every rank gets the same result. A collective.

    Raises:
        UserError: no such set or list, pairs of one kind alone, or a list whose pictures are not in the set.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    listed = how.ranks.agree(lambda: _listed(entry), "all")
    embedded = embed_set(entry.set, how)
    name = all_pairs_name(entry)
    return judge_all(embedded, name, how.ranks) if listed is None else judge_listed(embedded, name, listed, how.ranks)


def _listed(entry: AllPairsConfig) -> ListedPairs | None:
    if entry.pairs is None:
        return None
    pairs = read_pairs(entry.pairs)
    with StoredSet(entry.set) as samples:
        return find_pairs(pairs, samples, entry.pairs)


def judge_all(embedded: EmbeddedSet, name: str, ranks: Ranks = ALONE) -> AllPairsResult:
    """All pairs of the labelled pictures, and each picture with a mate searched among all others. A collective.

    Raises:
        UserError: pairs of one kind alone.
        WorkError: embeddings that are not finite.
    """
    ordered = order_by_identity(embedded.features, embedded.labels, f"set {embedded.path}")
    counts = count_pairs(ordered, FMRS, ranks)
    places = counts.places[counts.places > 0]
    notes = [*_notes_on_labels(embedded), *note_on_sameness(_median(counts.impostor))]
    return AllPairsResult(
        name=name,
        pictures=len(ordered.identity),
        identities=len(ordered.sizes),
        genuine_pairs=ordered.genuine_pairs,
        impostor_pairs=ordered.impostor_pairs,
        points=points_of(ordered, counts, ranks),
        searched=len(places),
        rank1=float((places <= 1).mean()),
        rank5=float((places <= 5).mean()),
        curve=_curve(counts),
        spread=_spread(counts),
        notes=tuple(notes),
    )


def judge_listed(embedded: EmbeddedSet, name: str, listed: ListedPairs, ranks: Ranks = ALONE) -> AllPairsResult:
    """The pairs of a list. A collective.

    Raises:
        WorkError: embeddings that are not finite.
    """
    ends = distinct(np.concatenate([listed.left, listed.right]))
    identity = identities_of(embedded.labels[torch.from_numpy(ends)])
    left, right = np.searchsorted(ends, listed.left), np.searchsorted(ends, listed.right)
    rows = embedded.features[torch.from_numpy(ends)]
    scores = paired_products(rows, rows, torch.from_numpy(left), torch.from_numpy(right)).numpy()
    ranked = sort_scores(scores, listed.same)
    contradicted = int(((identity[left] == identity[right]) != listed.same).sum())
    notes = [*listed.notes, *note_on_sameness(ranked.negatives)]
    if contradicted:
        notes.append(f"the set's labels say otherwise than the list for {contradicted:,} of its pairs; the list counts")
    return AllPairsResult(
        name=name,
        pictures=len(ends),
        identities=len(np.unique(identity)),
        genuine_pairs=len(ranked.positives),
        impostor_pairs=len(ranked.negatives),
        points=points_of_list(scores, identity[left], identity[right], listed.same, FMRS, ranks),
        searched=0,
        rank1=None,
        rank5=None,
        curve=roc(ranked, _DRAWN_POINTS),
        spread=histogram(ranked),
        notes=tuple(notes),
        accuracy=listed_accuracy(scores, listed.same),
    )


def listed_accuracy(scores: np.ndarray, same: np.ndarray) -> tuple[float, float] | None:
    """The accuracy of pairs in the order of their list over ten folds: mean and deviation."""
    bounds = fold_bounds(len(same))
    if len(same) < 2 * FOLDS or any(len(np.unique(part)) < 2 for part in np.split(same, bounds[1:-1])):
        return None
    found, _ = fold_accuracies(2 - 2 * scores.astype(np.float64), same)
    return float(found.mean()), float(found.std())


def identities_of(labels: Tensor) -> np.ndarray:
    """Numbers 0 .. I - 1 of the identities of labels int64 [N]; each picture without a label is one of its own."""
    values = labels.numpy().copy()
    alone = values < 0
    values[alone] = np.arange(alone.sum()) - alone.sum()
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _notes_on_labels(embedded: EmbeddedSet) -> list[str]:
    notes = []
    if without := int((embedded.labels < 0).sum()):
        notes.append(f"{without:,} pictures have no label, and are left out")
    if roles := sum(role is not None for role in embedded.roles):
        notes.append(f"{roles:,} pictures have a role in their .json, which is not looked at: all pairs count")
    return notes


def _median(counts: np.ndarray) -> np.ndarray:
    """The median score by counts of prefixes, to within a prefix, as an array of one."""
    middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return lower_edges()[middle : middle + 1]


def _curve(counts: PairCounts) -> Roc:
    """Rates at the lower edges of prefixes, as many as are drawn, even over the logarithm of FMR."""
    edges = lower_edges()
    accepted = [np.cumsum(each[::-1])[::-1] for each in (counts.impostor, counts.genuine)]
    filled = np.flatnonzero((counts.impostor + counts.genuine) > 0)[::-1]  # thresholds fall
    far, tar = (each[filled] / each[0] for each in accepted)
    wanted = np.geomspace(1 / accepted[0][0], 1, _DRAWN_POINTS)
    kept = np.unique(np.append(np.searchsorted(far, wanted, side="right") - 1, [0, len(filled) - 1]).clip(0))
    return Roc(np.append(0.0, far[kept]), np.append(0.0, tar[kept]), np.append(np.inf, edges[filled][kept]))


def _spread(counts: PairCounts) -> Histogram:
    edges = lower_edges()
    filled = np.flatnonzero((counts.impostor + counts.genuine) > 0)
    low, high = float(edges[filled[0]]), float(edges[filled[-1] + 1])
    bins = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    same, different = (
        np.histogram(edges[filled], bins, weights=each[filled] / each.sum())[0]
        for each in (counts.genuine, counts.impostor)
    )
    return Histogram(bins, same, different, None)


def check_all_pairs(entry: AllPairsConfig) -> None:
    """Look whether the set and the list of an entry are there.

    Raises:
        UserError: one is not.
    """
    StoredSet(entry.set).close()
    if entry.pairs is not None and not entry.pairs.is_file():
        raise UserError(f"evaluate.all_pairs: {entry.pairs}: no such file; correct the path, or remove it")


def all_pairs_paths(entry: AllPairsConfig) -> tuple[Path, ...]:
    """The set, and the list where there is one."""
    return (entry.set,) if entry.pairs is None else (entry.set, entry.pairs)
