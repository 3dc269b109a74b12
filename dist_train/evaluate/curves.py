"""Error rates of scored pairs as pure functions: ROC, and TAR at a FAR."""

from typing import NamedTuple

import numpy as np

from dist_train.errors import UserError


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


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """Exact ROC of similarity scores [n] and truth bool [n]; one point per distinct score.

    Raises:
        UserError: one of the two kinds of pairs is missing, or the lengths differ.
    """
    if len(scores) != len(same):
        raise UserError(f"{len(scores)} scores for {len(same)} labels")
    positives = int(same.sum())
    if not 0 < positives < len(same):
        raise UserError(f"{positives} of {len(same)} pairs are of the same identity; both kinds are needed")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(same[order], dtype=np.int64)
    # Equal scores are accepted together: only the last of each run is a point of the curve.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    accepted = last + 1
    far = np.concatenate([[0.0], (accepted - hits[last]) / (len(same) - positives)])
    tar = np.concatenate([[0.0], hits[last] / positives])
    return Roc(far, tar, np.concatenate([[np.inf], ranked[last]]))


def tar_at_far(curve: Roc, far: float, negatives: int) -> TarAtFar:
    """TAR at the lowest threshold whose FAR does not exceed `far` (no interpolation)."""
    index = int(np.searchsorted(curve.far, far, side="right")) - 1
    return TarAtFar(far, float(curve.tar[index]), float(curve.far[index]), negatives)


def thin(curve: Roc, points: int = 400) -> Roc:
    """About `points` of the curve's points, even over the logarithm of FAR, for drawing."""
    if len(curve.far) <= points:
        return curve
    floor = curve.far[curve.far > 0].min(initial=1.0)
    wanted = np.searchsorted(curve.far, np.geomspace(floor, 1.0, points))
    steps = np.unique(np.concatenate([[0], np.clip(wanted, 0, len(curve.far) - 1), [len(curve.far) - 1]]))
    return Roc(*(values[steps] for values in curve))
