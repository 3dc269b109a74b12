"""A threshold without labels: how many of the values that were observed belong to a kind whose values are known.

The two-groups model (Efron 2008, "Microarrays, empirical Bayes and the two-groups model", Statistical Science 23). Of
N(t) observed values at or below t, m F(t) are expected to be of the kind, where F is the distribution of values that
were made to be of the kind, and m its number among all. m is at most N(t) / F(t) at every t; the least of these is
taken, as the share of nulls is in Storey's estimate (2002, J. R. Statist. Soc. B 64).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_GRID = np.linspace(0.3, 0.9, 13)  # quantiles of the kind at which its number is estimated
_MOST = 0.99  # quantile of the kind up to which a value may be of it
_SLACK = 200  # a count of n is taken to lack two deviations, or this over n: chance matters little to large ones
_FEWEST = 20  # values that say something about a distribution


class Mixture(NamedTuple):
    """What is known of observed values.

    Attributes:
        expected: number of the kind among all that were observed.
        certainty: for each observed value, a cautious share of the kind among those at or below it, float32 [N].
        cut: the largest value with the certainty that was asked for; -inf where none has it.
    """

    expected: float
    certainty: Floats
    cut: float


def mixture(observed: Floats, known: Floats, certainty: float) -> Mixture:
    """Tell the kind with small values from the rest.

    Args:
        observed: values of all, [N].
        known: values of the kind, made for this purpose, [K].
        certainty: share of the kind that is asked for, among what is at or below the cut.
    """
    if not len(observed) or len(known) < _FEWEST:
        return Mixture(0.0, np.zeros(len(observed), np.float32), -np.inf)
    order = np.argsort(observed, kind="stable")
    rising, known = observed[order], np.sort(known)
    at = np.quantile(known, _GRID)
    share = np.searchsorted(known, at, side="right") / len(known)
    below = np.searchsorted(rising, at, side="right")
    # The least of several counts is too small by chance; of small counts by much of them.
    lacking = np.minimum(2 * np.sqrt(below + 1), _SLACK / (below + 1))
    expected = float(((below + lacking) / share).min())
    counts = np.searchsorted(rising, rising, side="right")
    of_kind = np.searchsorted(known, rising, side="right") / len(known)
    shares = _falling(np.minimum(expected * of_kind / counts, 1))
    # A cautious figure adds nothing to small counts; and of n right ones out of n, n / (n + 1) is all that can be said,
    # since the next one may be wrong, as in the p-values of Phipson and Smyth (2010, Stat. Appl. Genet. Mol. Biol. 9).
    least = float(((below + lacking * (lacking < 1)) / share).min())
    cautious = np.minimum(least * of_kind / counts, counts / (counts + 1))
    found = np.empty(len(observed), np.float32)
    found[order] = _falling(cautious)
    enough = np.flatnonzero((shares >= certainty) & (rising <= np.quantile(known, _MOST)))
    return Mixture(expected, found, float(rising[enough[-1]]) if len(enough) else -np.inf)


def _falling(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares [N] of what is at or below values that rise: no less certain than at or below a larger one."""
    falling: NDArray[np.float64] = np.maximum.accumulate(shares[::-1])[::-1]
    return falling
