"""Error against discarded pairs: whether a quality of pictures tells which of them fail.

Schlett, Rathgeb, Tapia, Busch, "Considerations on the evaluation of biometric quality assessment algorithms" (arXiv
2303.13294): the quality of a genuine pair is the lower of its two pictures'; pairs are discarded from the lowest up,
equal ones together; the error is FNMR of those left, at one threshold. The curve is a stair, and pAUC the area under
it from no pair discarded to 30 %. A quality that knows nothing leaves FNMR where it was; one that knows everything
discards the failing pairs first. The interval is from resampling identities.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LIMIT = 0.3  # largest discarded share of pAUC
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # whose errors are told
_DRAWN = 400  # points of a curve
_RESAMPLES, _AT_ONCE = 400, 50
_STEPS = 256  # of the discarded share, in resampling
_SEED = 0


@dataclass(frozen=True)
class Stairs:
    """An error against discarded share: from each share on, up to the next, the error stays.

    Attributes:
        discarded: rising shares of all pairs, the first 0, float64 [S].
        error: FNMR of the pairs left, float64 [S].
    """

    discarded: np.ndarray
    error: np.ndarray

    def at(self, share: float) -> float:
        """The error where at most a share is discarded."""
        return float(self.error[np.searchsorted(self.discarded, share * (1 + 1e-12), side="right") - 1])

    def area(self, limit: float = LIMIT) -> float:
        """The area under the stairs from 0 to `limit`."""
        ends = np.append(self.discarded[1:], 1.0).clip(max=limit)
        return float((self.error * (ends - self.discarded.clip(max=limit))).sum())

    def thinned(self, points: int = _DRAWN) -> "Stairs":
        """At most so many of its steps, even over the discarded share."""
        wanted = np.searchsorted(self.discarded, np.linspace(0, self.discarded[-1], points), side="right") - 1
        kept = np.unique(wanted)
        return Stairs(self.discarded[kept], self.error[kept])


@dataclass(frozen=True)
class QualityResult:
    """What a quality tells of a model's errors on a set.

    Attributes:
        name: of the set.
        by: of the quality.
        fmr: whose threshold the errors are at.
        threshold: cosine; a pair matches at or above it.
        fnmr: of all genuine pairs.
        stairs: FNMR against discarded share, thinned for drawing.
        errors: FNMR by discarded share.
        pauc: area under the curve from 0 to 0.3.
        share: of the area under FNMR as it was, which a quality that knows nothing has; nan without errors.
        share_95: its 95 % interval.
        best_share: that of a quality that knows which pairs fail.
        pictures: number of pictures.
        pairs: number of genuine pairs.
        notes: what a reader must know.
    """

    name: str
    by: str
    fmr: float
    threshold: float
    fnmr: float
    stairs: Stairs
    errors: dict[float, float]
    pauc: float
    share: float
    share_95: tuple[float, float]
    best_share: float
    pictures: int
    pairs: int
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "by": self.by,
            "fmr": self.fmr,
            "threshold": self.threshold,
            "pictures": self.pictures,
            "genuine_pairs": self.pairs,
            "fnmr": self.fnmr,
            "fnmr_at_discard": {f"{share:g}": error for share, error in self.errors.items()},
            "pauc": self.pauc,
            "pauc_of_random": self.share,
            "pauc_of_random_95": list(self.share_95),
            "best_pauc_of_random": self.best_share,
            "notes": list(self.notes),
        }


def discard(missed: np.ndarray, quality: np.ndarray) -> Stairs:
    """The error of genuine pairs against the share that is discarded.

    Args:
        missed: pairs below the threshold, bool [n].
        quality: of each pair, [n].
    """
    order = np.argsort(quality)
    ranked = quality[order]
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # equal pairs go together
    left = len(missed) - first
    gone = np.append(0, np.cumsum(missed[order]))[first]
    return Stairs(first / len(missed), (missed.sum() - gone) / left)


def best_area(errors: int, pairs: int, limit: float = LIMIT) -> float:
    """The area for a quality that discards the failing pairs first, one by one."""
    gone = np.arange(errors)
    return Stairs(np.append(gone, errors) / pairs, np.append((errors - gone) / (pairs - gone), 0.0)).area(limit)


def resampled_shares(missed: np.ndarray, quality: np.ndarray, whose: np.ndarray) -> np.ndarray:
    """The area as a share of that without knowledge, for sets of as many identities drawn from those there are, [400].

    Pairs are discarded in 256 steps here. Where the draw has no failing pair the share is nan.

    Args:
        missed: pairs below the threshold, bool [n].
        quality: of each pair, [n].
        whose: number of each pair's identity, int64 [n].
    """
    _, whose = np.unique(whose, return_inverse=True)
    people = int(whose.max()) + 1
    order = np.argsort(quality)
    ranked = quality[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    step = np.empty(len(order), np.int64)  # of each pair: that in which the first of its equals falls
    begin = np.repeat(starts, np.diff(np.append(starts, len(order))))
    step[order] = begin * _STEPS // len(order)
    tables = [_by_step(step[chosen], whose[chosen], people) for chosen in (slice(None), missed)]
    random = np.random.default_rng(_SEED)
    shares = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        draws = random.multinomial(people, np.full(people, 1 / people), _AT_ONCE).T  # [I, B]
        weights = torch.from_numpy(np.ascontiguousarray(draws, np.float32))
        pairs, errors = ((table @ weights).double().numpy() for table in tables)  # [256, B]
        gone, lost = (np.cumsum(each, axis=0) - each for each in (pairs, errors))
        total, failing = pairs.sum(axis=0), errors.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = total - gone
            error = np.where(left > 0, (failing - lost) / left, 0.0)
            ends = np.append(gone[1:], total[None], axis=0) / total
            widths = ends.clip(max=LIMIT) - (gone / total).clip(max=LIMIT)
            shares.append((error * widths).sum(axis=0) / (LIMIT * failing / total))
    return np.concatenate(shares)


def _by_step(step: np.ndarray, whose: np.ndarray, people: int) -> torch.Tensor:
    """How many pairs each identity has in each step, sparse [256, I]."""
    keys, counts = np.unique(step * people + whose, return_counts=True)
    places = torch.from_numpy(np.stack([keys // people, keys % people]))
    values = torch.from_numpy(counts.astype(np.float32))
    return torch.sparse_coo_tensor(places, values, (_STEPS, people), check_invariants=True).coalesce()


def judge_quality(
    missed: np.ndarray,
    quality: np.ndarray,
    whose: np.ndarray,
    *,
    threshold: float,
    pictures: int,
    title: tuple[str, str, float],
) -> QualityResult:
    """The figures of a quality of genuine pairs.

    Args:
        missed: pairs below the threshold, bool [n].
        quality: of each pair, [n]: the lower of its pictures'.
        whose: number of each pair's identity, int64 [n].
        threshold: cosine.
        pictures: number of pictures.
        title: name of the set, of the quality, and the FMR demanded.
    """
    stairs = discard(missed, quality)
    errors, pairs = int(missed.sum()), len(missed)
    fnmr, area = errors / pairs, stairs.area()
    share, best, interval, notes = np.nan, np.nan, (np.nan, np.nan), []
    if errors:
        share, best = area / (LIMIT * fnmr), best_area(errors, pairs) / (LIMIT * fnmr)
        low, high = np.nanpercentile(resampled_shares(missed, quality, whose), [2.5, 97.5])
        interval = float(low), float(high)
        if high >= 1:
            verdict = "worse than" if low > 1 else "no better than"
            notes.append(
                f"this quality is {verdict} random: pAUC is {share:.2f} of that without knowledge, 95 % interval "
                f"{low:.2f} to {high:.2f}; do not discard pictures by it"
            )
    else:
        notes.append("no genuine pair fails at this threshold: no quality can be judged by it")
    if len(stairs.discarded) == 1:
        notes.append("all pairs have the same quality")
    return QualityResult(
        *title,
        threshold,
        fnmr,
        stairs.thinned(),
        {each: stairs.at(each) for each in SHARES},
        area,
        float(share),
        interval,
        float(best),
        pictures,
        pairs,
        tuple(notes),
    )
