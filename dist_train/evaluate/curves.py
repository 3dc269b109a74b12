"""Error rates of scored pairs as pure functions: ROC, TAR at a FAR, histograms."""

from typing import NamedTuple

import numpy as np

from dist_train.errors import UserError

DRAWN_POINTS = 400


class Roc(NamedTuple):
    """A receiver operating characteristic: at threshold t a pair is accepted when its score is at least t.

    Attributes:
        far: share of accepted negatives, rising from 0 to 1, [M].
        tar: share of accepted positives, [M].
        thresholds: falling, the first is above all scores, [M].
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class TarAtFar(NamedTuple):
    """True accept rate at a demanded false accept rate.

    Attributes:
        far: the demanded rate.
        tar: positives accepted, as a share.
        measured_far: negatives accepted at the same threshold, as a share.
        negatives: how many there were.
    """

    far: float
    tar: float
    measured_far: float
    negatives: int

    @property
    def resolved(self) -> bool:
        """Whether the negatives suffice: below one expected false accept, `tar` is that of zero false accepts."""
        return self.far * self.negatives >= 1


class Histogram(NamedTuple):
    """How the scores of both kinds of pairs are spread.

    Attributes:
        edges: of the bins, rising, [bins + 1].
        same: share of the pairs of one identity in each bin, [bins].
        different: share of the others, [bins].
        threshold: where pairs are told apart, or None.
    """

    edges: np.ndarray
    same: np.ndarray
    different: np.ndarray
    threshold: float | None


class SortedScores(NamedTuple):
    """Scores of both kinds of pairs, rising. All that error rates need; sorting twice is cheaper than ordering pairs.

    Attributes:
        positives: of pairs of one identity, [P].
        negatives: of the others, [N].
    """

    positives: np.ndarray
    negatives: np.ndarray


def sort_scores(scores: np.ndarray, same: np.ndarray) -> SortedScores:
    """Similarity scores [n] and truth bool [n], told apart and sorted.

    Raises:
        UserError: one of the two kinds of pairs is missing, or the lengths differ.
    """
    if len(scores) != len(same):
        raise UserError(f"{len(scores)} scores for {len(same)} labels")
    positives = int(same.sum())
    if not 0 < positives < len(same):
        raise UserError(f"{positives} of {len(same)} pairs are of the same identity; both kinds are needed")
    return SortedScores(np.sort(scores[same]), np.sort(scores[~same]))


def roc(scores: SortedScores, points: int | None = None) -> Roc:
    """The exact ROC with one point per distinct score, or `points` of its points, even over the logarithm of FAR."""
    positives, negatives = scores
    if points is None:
        thresholds = np.unique(np.concatenate(scores))[::-1]
    else:
        false_accepts = np.unique(np.geomspace(1, len(negatives), points).astype(np.int64))
        ends = [positives[-1], min(positives[0], negatives[0])]  # no false accept yet; everything accepted
        thresholds = np.unique(np.concatenate([negatives[len(negatives) - false_accepts], ends]))[::-1]
    far = _share_from(negatives, thresholds)
    tar = _share_from(positives, thresholds)
    return Roc(np.append(0.0, far), np.append(0.0, tar), np.append(np.inf, thresholds))


def _share_from(ranked: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the rising values `ranked` that are at least each threshold."""
    return 1 - np.searchsorted(ranked, thresholds, side="left") / len(ranked)


def tar_at_far(scores: SortedScores, far: float) -> TarAtFar:
    """TAR at the lowest threshold whose FAR does not exceed `far` (no interpolation)."""
    positives, negatives = scores
    allowed = int(far * len(negatives) * (1 + 1e-12))  # 0.1 x 30 is a little less than 3
    # Just above the best negative that must not be accepted any more; its equals fall with it.
    barred = negatives[-1 - allowed] if allowed < len(negatives) else -np.inf
    accepted, false = (float((ranked > barred).mean()) for ranked in (positives, negatives))
    return TarAtFar(far, accepted, false, len(negatives))


def histogram(scores: SortedScores, threshold: float | None = None, bins: int = 60) -> Histogram:
    """The spread of both kinds of scores over bins that they share."""
    low = min(ranked[0] for ranked in scores)
    high = max(ranked[-1] for ranked in scores)
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    same, different = (np.histogram(ranked, edges)[0] / len(ranked) for ranked in scores)
    return Histogram(edges, same, different, threshold)
