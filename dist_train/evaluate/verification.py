"""1:1 verification by the protocol of LFW and its relatives.

Embedding = f(picture) + f(mirrored picture), normalised; squared distance of each pair; ten folds in file order, not
shuffled; for each the threshold that is best on the other nine (Huang et al. 2007, section 5, "unrestricted";
distances and steps as in Deng et al. 2019, ArcFace, section 3).
"""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.bin import VerificationSet, read_bin
from dist_train.evaluate.curves import TarAtFar
from dist_train.evaluate.embeddings import Embeddings, embed_pictures
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sameness import note_on_sameness
from dist_train.runtime.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

__all__ = ["VerificationResult", "VerificationSet", "evaluate_verification", "read_bin", "score_pairs"]

FOLDS = 10
FARS = (1e-3, 1e-4, 1e-5)
ACCURACY_STEP, TAR_STEP, LARGEST_DISTANCE = 0.01, 0.001, 4.0  # of squared distances between unit vectors
HARD_PAIRS = 12


class HardPair(NamedTuple):
    """A pair on the wrong side of the threshold.

    Attributes:
        number: of the pair in its set.
        score: cosine.
        same: the truth.
        left: encoded picture.
        right: encoded picture.
    """

    number: int
    score: float
    same: bool
    left: bytes
    right: bytes


@dataclass(frozen=True)
class VerificationResult:
    """What a model achieves on a verification set.

    Attributes:
        name: of the set.
        accuracy: mean over the folds; None, like the next two, of a set with one kind of pairs: any model that takes
            all for that kind would have 1.
        accuracy_std: standard deviation over the folds.
        threshold: mean of the folds' thresholds, as a cosine.
        tar_at_far: by demanded FAR; empty of a set with one kind of pairs.
        mean_norm: of raw embeddings.
        scores: cosine of each pair, float32 [n].
        same: the truth, bool [n].
        hard_pairs: the wrongly decided pairs farthest from the threshold, worst first.
        notes: what a reader of the figures must know.
    """

    name: str
    accuracy: float | None
    accuracy_std: float | None
    threshold: float | None
    tar_at_far: dict[float, TarAtFar]
    mean_norm: float
    scores: np.ndarray
    same: np.ndarray
    hard_pairs: tuple[HardPair, ...] = field(default=())
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "pairs": len(self.same),
            "negatives": int((~self.same).sum()),
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold": self.threshold,
            "tar_at_far": {f"{far:g}": entry.tar for far, entry in self.tar_at_far.items()} or None,
            "unresolved_fars": [f"{far:g}" for far, entry in self.tar_at_far.items() if not entry.resolved],
            "mean_norm": self.mean_norm,
            "notes": list(self.notes),
        }


def fold_bounds(count: int, folds: int = FOLDS) -> np.ndarray:
    """Bounds [folds + 1] of contiguous folds; the first `count % folds` have one more."""
    sizes = np.full(folds, count // folds)
    sizes[: count % folds] += 1
    return np.concatenate([[0], np.cumsum(sizes)])


def accepted_below(distances: np.ndarray, thresholds: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many distances of each fold lie below each threshold: int [folds, thresholds]."""
    parts = [distances[start:stop] for start, stop in itertools.pairwise(bounds)]
    return np.stack([np.searchsorted(np.sort(part), thresholds, side="left") for part in parts])


class _Folds:
    """Accepted positives and negatives of each fold at each threshold."""

    def __init__(self, distances: np.ndarray, same: np.ndarray, step: float, folds: int) -> None:
        # A float32 grid point just off its decimal value must not move a distance across it.
        self.thresholds = np.round(np.arange(0, LARGEST_DISTANCE, step), 6)
        bounds = fold_bounds(len(same), folds)
        # A negative moved beyond every threshold counts among no accepted positives, and the other way round.
        self.true_accepts = accepted_below(np.where(same, distances, np.inf), self.thresholds, bounds)
        self.false_accepts = accepted_below(np.where(same, np.inf, distances), self.thresholds, bounds)
        self.positives = np.array([int(same[a:b].sum()) for a, b in itertools.pairwise(bounds)])
        self.negatives = np.diff(bounds) - self.positives


def fold_accuracies(distances: np.ndarray, same: np.ndarray, folds: int = FOLDS) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of each fold at the threshold that is best on the others (the lowest of equals).

    Args:
        distances: squared distances [n].
        same: the truth, bool [n].
        folds: number of contiguous folds.

    Returns:
        Accuracies [folds] and thresholds [folds], squared distances.
    """
    table = _Folds(distances, same, ACCURACY_STEP, folds)
    correct = table.true_accepts + table.negatives[:, None] - table.false_accepts  # [folds, thresholds]
    best = (correct.sum(axis=0) - correct).argmax(axis=1)  # [folds]
    sizes = table.positives + table.negatives
    return correct[np.arange(folds), best] / sizes, table.thresholds[best]


def fold_tars(
    distances: np.ndarray, same: np.ndarray, fars: Sequence[float], folds: int = FOLDS
) -> dict[float, TarAtFar]:
    """Mean TAR over folds, each at the threshold where the other folds have a FAR, interpolated between grid steps.

    Many negatives may lie in one step, all of them if a model's embeddings are nearly equal; the threshold then ends at
    the first that would make the false accepts more than demanded, and those that equal it are refused with it. Below
    one expected false accept on the other folds that is their nearest negative.
    """
    table = _Folds(distances, same, TAR_STEP, folds)
    bounds = fold_bounds(len(same), folds)
    results = {}
    for far in fars:
        tars, measured = [], []
        for fold in range(folds):
            others = table.false_accepts.sum(axis=0) - table.false_accepts[fold]
            rates = others / max(int(table.negatives.sum() - table.negatives[fold]), 1)
            # The first step that reaches the rate; the step before lies below it, so the share is well defined.
            high = int(np.clip(np.searchsorted(rates, far, side="left"), 1, len(rates) - 1))
            rise = rates[high] - rates[high - 1]
            share = min((far - rates[high - 1]) / rise, 1.0) if rise > 0 else 1.0
            part = slice(bounds[fold], bounds[fold + 1])
            threshold = table.thresholds[high - 1] + share * TAR_STEP
            accepted = distances[part] < min(threshold, _barred(distances, ~same, part, far))
            if table.positives[fold]:
                tars.append(accepted[same[part]].mean())
            if table.negatives[fold]:
                measured.append(accepted[~same[part]].mean())
        results[far] = TarAtFar(far, float(np.mean(tars)), float(np.mean(measured)), int(table.negatives.sum()))
    return results


def _barred(distances: np.ndarray, negative: np.ndarray, left_out: slice, far: float) -> float:
    """Distance of the first negative outside of a fold that a FAR has no room for; infinity if it has for all."""
    others = negative.copy()
    others[left_out] = False
    ranked = distances[others]
    expected = far * len(ranked)
    allowed = math.ceil(expected - 1e-9) if expected >= 1 else 0
    return float(np.partition(ranked, allowed)[allowed]) if allowed < len(ranked) else math.inf


def score_pairs(features: torch.Tensor) -> np.ndarray:
    """Squared distances [n], float64, of the pairs in unit rows [2n, D]."""
    left, right = features[0::2], features[1::2]
    return (left - right).double().square().sum(dim=1).numpy()


def check_pairs(dataset: VerificationSet) -> None:
    """Look whether there are enough pairs to judge.

    Raises:
        UserError: fewer pairs than folds.
    """
    if (count := len(dataset.same)) < FOLDS:
        raise UserError(f"verification set {dataset.name}: {count} pairs, expected at least {FOLDS}")


def judge_pairs(dataset: VerificationSet, embeddings: Embeddings, fars: Sequence[float] = FARS) -> VerificationResult:
    """The protocol's figures from the embeddings of a set's pictures.

    Raises:
        UserError: fewer pairs than folds.
    """
    check_pairs(dataset)
    same = dataset.same
    distances = score_pairs(embeddings.normalized())
    scores = (1 - distances / 2).astype(np.float32)
    notes = [*_notes_on_kinds(same), *note_on_sameness(scores[~same])]
    if same.all() or not same.any():
        return VerificationResult(
            dataset.name, None, None, None, {}, embeddings.mean_norm, scores, same, notes=tuple(notes)
        )
    accuracies, thresholds = fold_accuracies(distances, same)
    threshold = float(thresholds.mean())
    return VerificationResult(
        name=dataset.name,
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=1 - threshold / 2,
        tar_at_far=fold_tars(distances, same, fars),
        mean_norm=embeddings.mean_norm,
        scores=scores,
        same=same,
        hard_pairs=tuple(_hard_pairs(dataset, distances, threshold)),
        notes=tuple(notes),
    )


def _notes_on_kinds(same: np.ndarray) -> list[str]:
    """What the order and the kinds of the pairs do to the figures."""
    if same.all() or not same.any():
        kind = "the same identity" if same.all() else "different identities"
        return [f"all {len(same)} pairs show {kind}: accuracy and TAR need both kinds, and are not given"]
    folds = [same[start:stop] for start, stop in itertools.pairwise(fold_bounds(len(same)))]
    single = sum(bool(fold.all() or not fold.any()) for fold in folds)
    if not single:
        return []
    return [
        f"{single} of {len(folds)} folds hold one kind of pairs only, as in a file that lists all pairs of one kind "
        "first: the threshold of a fold comes from folds of another mixture, and the figures mislead; list the pairs "
        "in turn (the protocol takes folds in file order)"
    ]


def _hard_pairs(dataset: VerificationSet, distances: np.ndarray, threshold: float) -> list[HardPair]:
    wrongness = np.where(dataset.same, distances - threshold, threshold - distances)
    worst = np.argsort(-wrongness, kind="stable")[:HARD_PAIRS]
    return [
        HardPair(
            int(i),
            float(1 - distances[i] / 2),
            bool(dataset.same[i]),
            dataset.images[2 * i],
            dataset.images[2 * i + 1],
        )
        for i in worst
        if wrongness[i] > 0
    ]


def evaluate_verification(
    embed_fn: EmbedFn,
    dataset: VerificationSet,
    image_size: int,
    batch_size: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
) -> VerificationResult:
    """Embed a set's pictures over all ranks and judge its pairs; every rank gets the same result.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        dataset: the pairs.
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding, as the protocol has it.

    Raises:
        UserError: a set that cannot be judged.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    name = f"verification set {dataset.name}"
    embeddings = embed_pictures(
        embed_fn,
        decoding(dataset.images.__getitem__, image_size, name),
        len(dataset.images),
        batch_size,
        flip=flip,
        name=name,
        ranks=ranks,
    )
    result = judge_pairs(dataset, embeddings)
    if ranks.rank == 0:
        for note in result.notes:
            logger.warning("%s: %s", name, note)
    return result
