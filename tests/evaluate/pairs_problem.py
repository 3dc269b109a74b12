"""Pictures whose cosines are exact in float32 and full of ties, and the plain figures of all their pairs."""

from typing import NamedTuple

import numpy as np
import torch


class Plain(NamedTuple):
    """Operating point by brute force in float64."""

    barred: float
    measured_fmr: float
    fnmr: float


def tied_rows(pictures, identities, dim=16, flipped=0.15, seed=0):
    """Unit rows of signs [N, dim] / sqrt(dim), each identity's own with some flipped, and labels in no order."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, identities, pictures)
    own = generator.choice([-1.0, 1.0], (identities, dim))
    signs = np.where(generator.random((pictures, dim)) < flipped, -own[labels], own[labels])
    return torch.from_numpy(signs / dim**0.5).float(), torch.from_numpy(labels)


def scores_of_pairs(features, labels):
    """Cosines of all pairs, float64, and whether each is of one identity."""
    left, right = np.triu_indices(len(labels), 1)
    scores = (features.double() @ features.double().T).numpy()[left, right]
    return scores, (labels[left] == labels[right]).numpy()


def plain_points(scores, same, fmrs):
    """Each FMR's point, by sorting."""
    genuine, impostor = scores[same], np.sort(scores[~same])[::-1]
    barred = [impostor[int(fmr * len(impostor) * (1 + 1e-12))] for fmr in fmrs]
    return [Plain(value, (impostor > value).mean(), (genuine <= value).mean()) for value in barred]


def plain_places(features, labels):
    """Place of each picture's best mate among all others, after others that score the same; 0 without a mate."""
    scores = (features.double() @ features.double().T).numpy()
    np.fill_diagonal(scores, -np.inf)
    same = (labels[:, None] == labels).numpy()
    np.fill_diagonal(same, False)
    mate = np.where(same, scores, -np.inf).max(axis=1)
    better = (np.where(same, -np.inf, scores) >= mate[:, None]).sum(axis=1)
    return np.where(same.any(axis=1), better + 1, 0)
