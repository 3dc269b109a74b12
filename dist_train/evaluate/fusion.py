"""Fusion of several embeddings of the same pictures: a weighted sum of cosines, learned on half of the identities.

Scores of impostor pairs are normalised to mean 0 and deviation 1 for each file, and a logistic regression of genuine
against impostor pairs weights them (Brümmer et al., "Fusion of heterogeneous speaker recognition systems in the STBU
submission for the NIST SRE 2006", 2007). A weighted sum of cosines is the cosine of unit rows that are scaled by the
root of their weight and put side by side, so that whatever works on embeddings works on fused ones. What the fusion is
worth is judged on the other half of the identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.identification import paired_products
from dist_train.evaluate.joining import chosen, join
from dist_train.evaluate.operating_points import notes_on_rate, threshold_at
from dist_train.evaluate.pair_counts import order_by_identity
from dist_train.evaluate.rates import clustered_difference
from dist_train.evaluate.scored_pairs import genuine_pairs
from dist_train.runtime.ranks import ALONE, Ranks

_SEED = 0
_MOST_PAIRS = 200_000  # of a kind that weights are learned from
_RIDGE = 1e-4  # holds the weights of kinds of pairs that can be told apart without an error


@dataclass(frozen=True)
class Comparison:
    """A file alone beside the fusion, at the FMR.

    Attributes:
        name: of the file.
        weight: of its cosines; all sum to 1.
        fnmr: of the file alone, at its own threshold.
        gain: its FNMR less that of the fusion.
        gain_95: the 95 % interval of that, over identities.
    """

    name: str
    weight: float
    fnmr: float
    gain: float
    gain_95: tuple[float, float]

    @property
    def beaten(self) -> bool:
        """Whether the fusion misses significantly fewer genuine pairs."""
        return self.gain_95[0] > 0


@dataclass(frozen=True)
class FusionResult:
    """What a fusion is worth on the half of the identities that it was not learned from.

    Attributes:
        fmr: demanded of each file and of the fusion.
        fnmr: of the fusion.
        alone: each file.
        calibration_identities: that the weights were learned from.
        identities: that the fusion was judged on.
        pictures: of these.
        notes: what a reader must know.
    """

    fmr: float
    fnmr: float
    alone: tuple[Comparison, ...]
    calibration_identities: int
    identities: int
    pictures: int
    notes: tuple[str, ...] = ()

    @property
    def better(self) -> bool:
        """Whether the fusion is better than each file alone."""
        return all(each.beaten for each in self.alone)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "fmr": self.fmr,
            "fnmr": self.fnmr,
            "better_than_each_alone": self.better,
            "calibration_identities": self.calibration_identities,
            "identities": self.identities,
            "pictures": self.pictures,
            "alone": [
                {
                    "file": each.name,
                    "weight": each.weight,
                    "fnmr": each.fnmr,
                    "gain": each.gain,
                    "gain_95": list(each.gain_95),
                }
                for each in self.alone
            ],
            "notes": list(self.notes),
        }


def halves(labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pictures of each half of the identities, those with one picture shared evenly too.

    Args:
        labels: int64 [N]; pictures with -1 are in neither.
    """
    values = labels.numpy()
    identities, counts = np.unique(values[values >= 0], return_counts=True)
    random = np.random.default_rng(_SEED)
    first = [random.permutation(identities[kind])[::2] for kind in (counts > 1, counts == 1)]
    calibration = np.isin(values, np.concatenate(first))
    return np.flatnonzero(calibration), np.flatnonzero(~calibration & (values >= 0))


def learned_weights(files: Sequence[EmbeddedSet], pictures: np.ndarray) -> np.ndarray:
    """The weight of each file's cosines, summing to 1; 0 for one that does not help beside the others, float64 [K].

    Args:
        files: the same pictures in each.
        pictures: numbers of those to learn from.

    Raises:
        UserError: no pair of one identity or none of two.
    """
    numbers = torch.from_numpy(pictures)
    labels = files[0].labels[numbers]
    order_by_identity(files[0].features[numbers], labels, "the half of the identities that weights are learned from")
    left, right = _sampled_pairs(labels.numpy())
    rows = [each.features[numbers] for each in files]
    pairs = torch.from_numpy(left), torch.from_numpy(right)
    scores = np.stack([paired_products(each, each, *pairs).double().numpy() for each in rows], axis=1)  # [n, K]
    same = labels.numpy()[left] == labels.numpy()[right]
    spread = np.maximum(scores[~same].std(axis=0), 1e-6)
    normalised = (scores - scores[~same].mean(axis=0)) / spread
    kept = np.arange(len(files))
    while True:
        slopes = logistic_slopes(normalised[:, kept], same)
        if (slopes > 0).all() or len(kept) == 1:
            break
        kept = np.delete(kept, slopes.argmin())  # a file whose likeness speaks against an identity adds noise alone
    weights = np.zeros(len(files))
    weights[kept] = slopes / spread[kept] if len(kept) > 1 else 1.0  # the last has it all, even if it tells nothing
    weights /= weights.sum()
    return weights


def _sampled_pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs to learn from: genuine and impostor ones, at most 200,000 drawn of each kind."""
    random = np.random.default_rng(_SEED)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.append(True, labels[order][1:] != labels[order][:-1]))
    sizes = np.diff(np.append(starts, len(labels)))
    genuine = sizes * (sizes - 1) // 2
    drawn = np.sort(random.choice(genuine.sum(), min(_MOST_PAIRS, genuine.sum()), replace=False))
    whose = np.searchsorted(np.cumsum(genuine), drawn, side="right")
    inside = drawn - (np.cumsum(genuine) - genuine)[whose]
    # Pair number n of an identity is (i, j) with j < i and n = i (i - 1) / 2 + j.
    i = ((1 + np.sqrt(1 + 8 * inside)) / 2).astype(np.int64)
    i -= i * (i - 1) // 2 > inside
    j = inside - i * (i - 1) // 2
    a, b = random.integers(0, len(labels), (2, 2 * _MOST_PAIRS))
    others = np.flatnonzero(labels[a] != labels[b])[:_MOST_PAIRS]
    left = np.concatenate([order[starts[whose] + i], a[others]])
    right = np.concatenate([order[starts[whose] + j], b[others]])
    return left, right


def logistic_slopes(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Slopes [K] of the logistic regression of `same` [n] on scores [n, K]; both kinds of pairs weigh the same.

    Newton's method on the mean loss plus 1e-4 / 2 times the squared slopes: a few steps of [K + 1, K + 1] systems.
    """
    rows = np.column_stack([scores, np.ones(len(scores))])
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    ridge = np.diag([_RIDGE] * scores.shape[1] + [0.0])
    found = np.zeros(rows.shape[1])
    for _ in range(100):
        likely = 1 / (1 + np.exp(-np.clip(rows @ found, -500, 500)))
        gradient = rows.T @ (weight * (likely - same)) + ridge @ found
        curvature = (rows * (weight * likely * (1 - likely))[:, None]).T @ rows + ridge + 1e-12 * np.eye(len(found))
        step = np.linalg.solve(curvature, gradient)
        found -= step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-12))  # far from the optimum a step may be too long
        if np.abs(step).max() < 1e-9:
            break
    return found[:-1]


def fused(files: Sequence[EmbeddedSet], weights: np.ndarray) -> EmbeddedSet:
    """The pictures with unit rows [N, sum of D] whose cosines are the weighted sums of those of the files."""
    name = " + ".join(each.name for each in files)
    rows = fused_rows([each.features for each in files], weights.tolist())
    return replace(files[0], name=name, path=Path(name), features=rows)


def fused_rows(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Unit rows [N, sum of D] whose cosines are the weighted sums of those of unit rows [N, D] of each file."""
    rows = torch.cat([each * float(np.sqrt(weight)) for each, weight in zip(parts, weights, strict=True)], dim=1)
    return torch.nn.functional.normalize(rows, dim=1)


def evaluate_fusion(
    files: Sequence[EmbeddedSet], fmr: float, ranks: Ranks = ALONE
) -> tuple[FusionResult, list[EmbeddedSet]]:
    """Learn weights on one half of the identities and judge them on the other. A collective.

    Args:
        files: embeddings, the same on every rank.
        fmr: false match rate at which the fusion is compared with each file.
        ranks: the processes that share the work.

    Returns:
        The result, and the pictures of the half that was judged, as each file has them and, last, fused.

    Raises:
        UserError: files that cannot be joined, or a half without a pair of one identity or without two identities.
    """
    joined, notes = join(files)
    calibration, rest = halves(joined[0].labels)
    weights = learned_weights(joined, calibration)
    judged = [chosen(each, rest.tolist()) for each in (*joined, fused(joined, weights))]
    missed = [_missed(each, fmr, ranks) for each in judged]
    pairs, errors = missed[-1]
    total = int(pairs.sum())
    alone = []
    for each, weight, (_, own) in zip(joined, weights, missed, strict=False):
        gain, deviation = clustered_difference(own - errors, pairs)
        interval = gain - 1.96 * deviation, gain + 1.96 * deviation
        alone.append(Comparison(each.name, float(weight), float(own.sum() / total), gain, interval))
        if not weight:
            notes.append(f"{each.name} has weight 0: beside the others it does not help to tell identities apart")
    count = len(rest)
    notes += notes_on_rate(fmr, count * (count - 1) // 2 - total)
    result = FusionResult(
        fmr,
        float(errors.sum() / total),
        tuple(alone),
        len(joined[0].labels[torch.from_numpy(calibration)].unique()),
        len(judged[0].labels.unique()),
        count,
        (*notes, _verdict(alone)),
    )
    return result, judged


def _missed(one: EmbeddedSet, fmr: float, ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Genuine pairs, and those below the threshold of the FMR, of each identity, [I]."""
    ordered = order_by_identity(one.features, one.labels, f"the half of the identities that {one.name} is judged on")
    threshold = threshold_at(ordered, fmr, ranks)
    pairs = genuine_pairs(ordered.features, torch.from_numpy(ordered.identity), ranks)
    whose, count = ordered.identity[pairs.left], len(ordered.sizes)
    below = pairs.score < np.float32(threshold)
    return np.bincount(whose, minlength=count), np.bincount(whose[below], minlength=count)


def _verdict(alone: Sequence[Comparison]) -> str:
    if unbeaten := [each.name for each in alone if not each.beaten]:
        return f"the fusion is not significantly better than {' and '.join(unbeaten)} alone"
    return "the fusion is significantly better than each file alone"
