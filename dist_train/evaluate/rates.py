"""Error rates with what is known of them: 95 % intervals and a test that take pairs of one identity as one draw.

Pairs of an identity are not independent: one person's bad pictures fail together. The variance of a rate is therefore
taken over identities. Of genuine pairs, all of one identity, it is that of a ratio of sums over clusters. Of impostor
pairs, each of two identities, it is the one for dyads (Fafchamps and Gubert, "The formation of risk sharing networks",
2007; Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", 2015): both of a pair's identities
count. Resampling identities would give impostor pairs up to three times that variance where false matches are rare.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_Z95 = NormalDist().inv_cdf(0.975)


class Rate(NamedTuple):
    """A share of pairs.

    Attributes:
        errors: pairs that were decided wrongly.
        pairs: of all.
        variance: of the share, over identities.
        draws: what counts as independent where the errors do not tell: identities, or pairs of two for impostor pairs.
    """

    errors: int
    pairs: int
    variance: float
    draws: int

    @property
    def share(self) -> float:
        """Errors per pair; nan without pairs."""
        return self.errors / self.pairs if self.pairs else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: Wilson's for as many independent pairs as would have the variance; nan without pairs.

        Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated
        from survey data" (1998), have the number of pairs so. Where all pairs are right, or all wrong, there is no
        variance to take it from, and `draws` are counted.
        """
        if not self.pairs:
            return math.nan, math.nan
        spread = self.share * (1 - self.share)
        count = min(spread / self.variance if spread and self.variance else self.draws, self.pairs)
        middle = self.share + _Z95**2 / (2 * count)
        half = _Z95 * math.sqrt(spread / count + (_Z95 / (2 * count)) ** 2)
        scale = 1 + _Z95**2 / count
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def summary(self) -> dict[str, float | int | list[float]]:
        """The figures, ready for JSON."""
        return {"rate": self.share, "interval_95": list(self.interval), "errors": self.errors, "pairs": self.pairs}


def genuine_rate(errors: np.ndarray, pairs: np.ndarray) -> Rate:
    """The rate over identities with `errors` [I] among their `pairs` [I]."""
    there = pairs > 0
    errors, pairs = errors[there].astype(np.float64), pairs[there].astype(np.float64)
    count, total = len(pairs), float(pairs.sum())
    if not count:
        return Rate(0, 0, 0.0, 0)
    deviation = clustered_difference(errors, pairs)[1]
    return Rate(int(errors.sum()), int(total), deviation**2, count)


def clustered_difference(differences: np.ndarray, pairs: np.ndarray) -> tuple[float, float]:
    """A difference of two rates over the same pairs, and its standard deviation over identities.

    Args:
        differences: of the errors, by identity, [I].
        pairs: of each identity, [I].
    """
    there = pairs > 0
    differences, pairs = differences[there].astype(np.float64), pairs[there].astype(np.float64)
    share = float(differences.sum() / pairs.sum())
    variance = float(((differences - share * pairs) ** 2).sum()) / float(pairs.sum()) ** 2
    return share, math.sqrt(variance * _corrected(len(pairs)))


class Dyads(NamedTuple):
    """Pairs of identities with false matches among the pairs of their pictures; a pair of identities is here once.

    Attributes:
        left: number of an identity, int64 [M].
        right: number of the other, int64 [M].
        matches: false matches, int64 [M].
        pairs: impostor pairs of pictures, int64 [M].
    """

    left: np.ndarray
    right: np.ndarray
    matches: np.ndarray
    pairs: np.ndarray


def impostor_rate(found: Dyads, pairs: np.ndarray, dyads: int, squares: float) -> Rate:
    """The rate over impostor pairs.

    Args:
        found: pairs of identities with false matches.
        pairs: impostor pairs that each identity has a part in, [I].
        dyads: number of all pairs of identities that have impostor pairs.
        squares: sum over all pairs of identities of the squared number of their impostor pairs.
    """
    count, total = int((pairs > 0).sum()), int(pairs.sum()) // 2
    if not total:
        return Rate(0, 0, 0.0, 0)
    errors = int(found.matches.sum())
    share = errors / total
    own = np.bincount(found.left, found.matches, len(pairs)) + np.bincount(found.right, found.matches, len(pairs))
    matches = found.matches.astype(np.float64)
    # Over all pairs of identities, most of which have no match: (matches - share * pairs)^2 is expanded.
    single = float((matches**2).sum() - 2 * share * (matches * found.pairs).sum() + share**2 * squares)
    both = float(((own - share * pairs) ** 2).sum()) - single  # each pair of identities was in it twice
    return Rate(errors, total, max(both, single) / total**2 * _corrected(count), dyads)


def _corrected(count: int) -> float:
    return count / (count - 1) if count > 1 else 1.0


def pooled(rates: Sequence[Rate]) -> Rate:
    """The rate over the pairs of all rates, which share no pairs."""
    errors, pairs = (sum(rate[field] for rate in rates) for field in (0, 1))
    variance = sum(rate.variance * rate.pairs**2 for rate in rates) / max(pairs, 1) ** 2
    return Rate(int(errors), int(pairs), variance, sum(rate.draws for rate in rates))


def higher(one: Rate, other: Rate) -> float:
    """The probability of a ratio `one` / `other` at least as large if both rates were equal; 1 where one has no pairs.

    The logarithm of the ratio is taken for normal. Half an error more on both sides gives those without errors one.
    """
    if not one.pairs or not other.pairs:
        return 1.0
    shares = [(rate.errors + 0.5) / (rate.pairs + 1) for rate in (one, other)]
    # No rate is known better than that of as many independent pairs.
    variances = [max(rate.variance, s * (1 - s) / rate.pairs) for rate, s in zip((one, other), shares, strict=True)]
    deviation = math.sqrt(sum(v / s**2 for v, s in zip(variances, shares, strict=True)))
    if not deviation:  # every pair an error on both sides
        return 1.0
    return 1 - NormalDist().cdf(math.log(shares[0] / shares[1]) / deviation)


def adjusted(probabilities: Sequence[float]) -> list[float]:
    """The probabilities of several tests, each as that of the whole family (Holm 1979)."""
    count, largest = len(probabilities), 0.0
    result = [1.0] * count
    for place, test in enumerate(sorted(range(count), key=lambda number: probabilities[number])):
        largest = max(largest, min(1.0, (count - place) * probabilities[test]))
        result[test] = largest
    return result


def gini(shares: Sequence[float]) -> float:
    """Gini coefficient of some rates, 0 for equal ones and 1 where one has all errors; nan for fewer than two.

    With the factor n / (n - 1) for few groups, as GARBE has it (Howard, Laird, Sirotin et al., "Evaluating proposed
    fairness models for face recognition algorithms", 2022).
    """
    values = np.asarray(shares, np.float64)
    count, mean = len(values), float(values.mean()) if len(values) else 0.0
    if count < 2:
        return math.nan
    if mean == 0:
        return 0.0
    return float(np.abs(values[:, None] - values).sum()) / (2 * count * (count - 1) * mean)
