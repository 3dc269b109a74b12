"""Intervals of FNMR at a demanded FMR by drawing identities anew: pairs that share a person are not independent.

The bootstrap over people (Bolle, Ratha, Pankanti, "Error analysis of pattern recognition systems - the subsets
bootstrap", CVIU 93, 2004; ISO/IEC 19795-1 allows it): of I identities I are drawn with replacement. One that is drawn k
times has its genuine pairs counted k times, and its impostor pairs with one drawn l times k l times; pairs of a person
with a copy of the same person are none. Each round sets its own threshold at the demanded FMR, and the FNMR there is a
value of the distribution whose quantiles 2.5 % and 97.5 % are the interval: it has the uncertainty of the threshold
too. Drawing both people of a pair errs to the wide side where few pairs decide (Owen, "The pigeonhole bootstrap",
Annals of Applied Statistics 1, 2007).
"""

from collections.abc import Sequence

import numpy as np

from dist_train.evaluate.thinned import PairSample
from dist_train.runtime.ranks import ALONE, Ranks

ROUNDS = 1000
LEVEL = 0.95
_SEED = 19795


def fnmr_intervals(
    genuine: PairSample,
    impostor: PairSample,
    fmrs: Sequence[float],
    identities: int,
    sizes: np.ndarray | None = None,
    ranks: Ranks = ALONE,
    rounds: int = ROUNDS,
) -> np.ndarray:
    """Both ends of the interval of FNMR at each FMR, float64 [F, 2]; nan if no round had both kinds of pairs.

    A collective.

    Args:
        genuine: pairs of one identity.
        impostor: pairs of two; the lowest may be missing.
        fmrs: demanded rates [F].
        identities: I.
        sizes: pictures of each identity [I], if all their pairs count; None: only the listed ones.
        ranks: the processes that share the rounds.
        rounds: how often identities are drawn.
    """
    draws = _Draws(genuine, impostor, fmrs, sizes)
    mine = [draws.fnmrs(_counts(identities, number)) for number in range(ranks.rank, rounds, ranks.world_size)]
    drawn = np.concatenate([np.reshape(part, (-1, len(fmrs))) for part in ranks.gather(mine)])  # [rounds, F]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        return np.full((len(fmrs), 2), np.nan)
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)  # [2, F]
    return _widened(ends.T, len(np.unique(genuine.left)))


def _counts(identities: int, number: int) -> np.ndarray:
    """How often each identity is drawn in a round, float64 [I]."""
    drawn = np.random.default_rng((_SEED, number)).integers(0, identities, identities)
    return np.bincount(drawn, minlength=identities).astype(np.float64)


def _widened(ends: np.ndarray, identities: int) -> np.ndarray:
    """The ends, where all rounds are without an error, or with nothing else: drawing anew makes none of none.

    The other end is then that of the rule of three (Louis 1981), with identities as its independent trials.
    """
    most = 1 - (1 - LEVEL) ** (1 / identities)
    low, high = ends.T
    return np.stack([np.where(low == 1, 1 - most, low), np.where(high == 0, most, high)], axis=1)


class _Draws:
    """FNMR at each demanded FMR, when identities count as often as they are drawn."""

    def __init__(
        self, genuine: PairSample, impostor: PairSample, fmrs: Sequence[float], sizes: np.ndarray | None
    ) -> None:
        self._genuine = genuine
        self._impostor = PairSample(*(column[::-1].copy() for column in impostor))  # falling
        self._two = self._impostor.left != self._impostor.right  # a list may contradict the labels
        self._fmrs = np.array(fmrs)
        self._sizes = sizes

    def fnmrs(self, counts: np.ndarray) -> np.ndarray:
        """Rates [F] with identities counted `counts` [I] times; nan where a kind of pairs is missing."""
        impostor = self._impostor
        weights = impostor.weights * counts[impostor.left]
        weights *= counts[impostor.right] if self._two.all() else np.where(self._two, counts[impostor.right], 1)
        matches = np.cumsum(weights)
        missed = np.cumsum(self._genuine.weights * counts[self._genuine.left])
        pairs = matches[-1] if self._sizes is None else _pairs_of_two(counts, self._sizes)
        if not pairs > 0 or not missed[-1] > 0:
            return np.full(len(self._fmrs), np.nan)
        first = np.searchsorted(matches, self._fmrs * pairs * (1 + 1e-12), side="right")
        barred = impostor.scores[np.minimum(first, len(matches) - 1)]
        below = np.searchsorted(self._genuine.scores, barred, side="right")  # [F]
        rates: np.ndarray = np.concatenate([[0.0], missed])[below] / missed[-1]
        return rates


def _pairs_of_two(counts: np.ndarray, sizes: np.ndarray) -> float:
    """Number of pairs of pictures of two identities of `sizes` that count `counts` times."""
    pictures = counts * sizes
    return float(pictures.sum() ** 2 - (pictures**2).sum()) / 2
