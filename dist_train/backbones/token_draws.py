"""What a transformer leaves out in training, as functions of seed, step and place in the sample order.

So a run draws the same on any number of ranks, in micro-batches of any size, and after a resume.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dist_train.data.counters import Ints, uniforms

# Streams of random numbers beside those of the data.
_PATHS = 2
_PATCHES = 3


def kept_paths(seed: int, step: int, positions: Ints, rates: Sequence[float]) -> NDArray[np.float32]:
    """Factors of residual branches, 0 where a sample is left out: [B, branches].

    Args:
        seed: of the run.
        step: of the run.
        positions: [B], places in the sample order.
        rates: of each branch, the share of samples that are left out; others are multiplied by 1 / (1 - rate).
    """
    shares = np.asarray(rates)
    drawn = uniforms(seed, _PATHS, np.full_like(positions, step), positions, len(shares))
    factors: NDArray[np.float32] = ((drawn >= shares) / (1 - shares)).astype(np.float32)
    return factors


def kept_patches(seed: int, step: int, positions: Ints, count: int, kept: int) -> Ints:
    """Which patches each sample keeps, all choices alike likely: [B, kept], ascending.

    Args:
        seed: of the run.
        step: of the run.
        positions: [B], places in the sample order.
        count: patches of a picture, at most 1,024.
        kept: of these.
    """
    drawn = uniforms(seed, _PATCHES, np.full_like(positions, step), positions, count)
    return np.sort(np.argsort(drawn, axis=1, kind="stable")[:, :kept], axis=1)
