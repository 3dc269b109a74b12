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
        certainty: for each observed value, the expected share of the kind among those at or below it, float32 [N].
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
    expected = float(((below + np.minimum(2 * np.sqrt(below + 1), _SLACK / (below + 1))) / share).min())
    of_kind = expected * np.searchsorted(known, rising, side="right") / len(known)
    counts = np.searchsorted(rising, rising, side="right")
    # What is at or below a value is no less certain than what is at or below a larger one.
    shares = np.maximum.accumulate(np.minimum(of_kind / counts, 1)[::-1])[::-1]
    found = np.empty(len(observed), np.float32)
    found[order] = shares
    enough = np.flatnonzero((shares >= certainty) & (rising <= np.quantile(known, _MOST)))
    return Mixture(expected, found, float(rising[enough[-1]]) if len(enough) else -np.inf)
