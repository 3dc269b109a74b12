"""The numbers a product needs: thresholds at demanded false match rates, what is missed there, and how sure that is.

FMR is the share of pairs of two identities whose cosine is at least the threshold, FNMR that of pairs of one identity
whose cosine is below it; ISO/IEC 19795-1 for comparisons without failures to acquire.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.pair_counts import Ordered, PairCounts, count_pairs, order_by_identity
from dist_train.evaluate.resampling import fnmr_intervals
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
    points = []
    for fmr, (low, high) in zip(fmrs, ends.tolist(), strict=True):
        found = counts.thresholds[fmr]
        points.append(
            OperatingPoint(
                fmr,
                just_above(found.barred),
                found.false_matches / ordered.impostor_pairs,
                found.false_non_matches / ordered.genuine_pairs,
                low,
                high,
                is_resolved(fmr, ordered.impostor_pairs),
            )
        )
    return tuple(points)


def is_resolved(rate: float, pairs: int) -> bool:
    """Whether `pairs` are enough to speak of `rate`."""
    return rate * pairs * (1 + 1e-12) >= RULE_OF_THREE


def just_above(barred: float) -> float:
    """The lowest float32 that a score which must not match does not reach."""
    return float(np.nextafter(np.float32(barred), np.float32(np.inf)))
