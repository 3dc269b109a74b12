"""Embeddings of simulated identities, and how well clusters agree with these."""

import numpy as np


def simulate(identities: int, pictures: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings [N, dim] in random order with identities [N]; pairs of an identity have cosines of 0.6 +- 0.1."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(identities), pictures))
    centers = unit(random.standard_normal((identities, dim), dtype=np.float32))
    # The cosine of two pictures is the root of the product of their shares, so a share spreads twice as far in squares.
    share = np.clip(random.normal(0.6, 0.1 * np.sqrt(2), len(labels)), 0.05, 0.98).astype(np.float32)[:, None]
    rest = unit(random.standard_normal((len(labels), dim), dtype=np.float32))
    return unit(np.sqrt(share) * centers[labels] + np.sqrt(1 - share) * rest), labels


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairwise_f(found: np.ndarray, true: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the pairs that share a cluster."""
    both = pairs(found * (int(true.max()) + 1) + true)
    return 2 * both / (pairs(found) + pairs(true))


def pairs(labels: np.ndarray) -> int:
    counts = np.unique(labels, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
