"""The numbers a product needs: thresholds at demanded false match rates, what is missed there, and how sure that is.

FMR is the share of pairs of two identities whose cosine is at least the threshold, FNMR that of pairs of one identity
whose cosine is below it; ISO/IEC 19795-1 for comparisons without failures to acquire.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.pair_counts import (
    Ordered,
    PairCounts,
    Threshold,
    allowed_matches,
    count_pairs,
    order_by_identity,
)
from dist_train.evaluate.resampling import fnmr_intervals
from dist_train.evaluate.search import TIE
from dist_train.evaluate.thinned import PairSample
from dist_train.runtime.ranks import ALONE, Ranks

FMRS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
RULE_OF_THREE = 3


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and the errors that a set has there.

    Attributes:
        fmr: the demanded false match rate.
        threshold: the lowest cosine that keeps to it in the set; a pair matches when its cosine is at least that.
        measured_fmr: share of the impostor pairs that match.
        fnmr: share of the genuine pairs that do not.
        fnmr_low: lower end of the 95 % interval of FNMR at this FMR; nan where it cannot be told.
        fnmr_high: its upper end.
        resolved: whether the impostor pairs are enough for the rate: by the rule of three, none among n says with
            95 % that it is at most 3 / n.
    """

    fmr: float
    threshold: float
    measured_fmr: float
    fnmr: float
    fnmr_low: float
    fnmr_high: float
    resolved: bool

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "fmr": self.fmr,
            "threshold": self.threshold,
            "measured_fmr": self.measured_fmr,
            "fnmr": self.fnmr,
            "fnmr_95": [self.fnmr_low, self.fnmr_high],
            "resolved": self.resolved,
        }


def operating_points(
    embedded: EmbeddedSet, ranks: Ranks = ALONE, fmrs: Sequence[float] = FMRS
) -> tuple[OperatingPoint, ...]:
    """Operating points over all pairs of a set's labelled pictures, the same on every rank. A collective.

    Raises:
        UserError: no pair of one identity or none of two.
        WorkError: embeddings that are not finite.
    """
    ordered = order_by_identity(embedded.features, embedded.labels, f"set {embedded.path}")
    return points_of(ordered, count_pairs(ordered, fmrs, ranks), ranks)


def points_of(ordered: Ordered, counts: PairCounts, ranks: Ranks = ALONE) -> tuple[OperatingPoint, ...]:
    """The operating points of what was counted. A collective."""
    fmrs = tuple(counts.thresholds)
    both = counts.genuine_sample, counts.impostor_sample
    ends = fnmr_intervals(*both, fmrs, len(ordered.sizes), ordered.sizes, ranks)
    return _made(counts.thresholds, ends, ordered.genuine_pairs, ordered.impostor_pairs)


def _made(
    thresholds: dict[float, Threshold], ends: np.ndarray, genuine: int, impostor: int
) -> tuple[OperatingPoint, ...]:
    """Points of counts and intervals [F, 2], with so many pairs of each kind."""
    return tuple(
        OperatingPoint(
            fmr,
            just_above(found.barred),
            found.false_matches / impostor,
            found.false_non_matches / genuine,
            low,
            high,
            is_resolved(fmr, impostor),
        )
        for (fmr, found), (low, high) in zip(thresholds.items(), ends.tolist(), strict=True)
    )


def is_resolved(rate: float, pairs: int) -> bool:
    """Whether `pairs` are enough to speak of `rate`."""
    return rate * pairs * (1 + 1e-12) >= RULE_OF_THREE


def notes_on_rate(fmr: float, pairs: int) -> list[str]:
    """What to say of a rate that so many impostor pairs do not carry; nothing if they do."""
    if is_resolved(fmr, pairs):
        return []
    needed = f"FMR {fmr:g} needs {RULE_OF_THREE / fmr:,.0f} impostor pairs or more"
    return [f"{needed}, and there are {pairs:,}: take a larger --fmr"]


def just_above(barred: float) -> float:
    """The lowest float32 that a score which must not match does not reach."""
    return float(np.nextafter(np.float32(barred), np.float32(np.inf)))


def threshold_at(ordered: Ordered, fmr: float, ranks: Ranks = ALONE) -> float:
    """The threshold of an FMR over all impostor pairs, for scores that are summed by other blocks than those counted.

    It lies above what equals the best score that must not match (`TIE`): rounding lets no pair in. A collective.
    """
    return just_above(count_pairs(ordered, [fmr], ranks).thresholds[fmr].barred + TIE)


def points_of_list(
    scores: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    same: np.ndarray,
    fmrs: Sequence[float] = FMRS,
    ranks: Ranks = ALONE,
) -> tuple[OperatingPoint, ...]:
    """Operating points over listed pairs alone, the same on every rank. A collective.

    Args:
        scores: float32 [n].
        left: number of the first picture's identity, 0 .. I - 1, int64 [n].
        right: of the second's.
        same: whether a pair is genuine, bool [n]; both kinds are there.
        fmrs: demanded rates.
        ranks: the processes that share the work.
    """
    order = np.argsort(scores, kind="stable")
    kinds = [order[same[order]], order[~same[order]]]
    genuine, impostor = (
        PairSample(scores[kind], left[kind].astype(np.int32), right[kind].astype(np.int32), np.ones(len(kind)))
        for kind in kinds
    )
    counts = {}
    for fmr in fmrs:
        barred = impostor.scores[-1 - allowed_matches(fmr, len(impostor.scores))]
        matches = len(impostor.scores) - int(np.searchsorted(impostor.scores, barred, side="right"))
        counts[fmr] = Threshold(float(barred), matches, int(np.searchsorted(genuine.scores, barred, side="right")))
    ends = fnmr_intervals(genuine, impostor, fmrs, 1 + int(max(left.max(), right.max())), None, ranks)
    return _made(counts, ends, len(genuine.scores), len(impostor.scores))
