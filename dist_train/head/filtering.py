"""Softmax weights of a block of rows without the samples and rows on which none is large enough to matter.

With s = 64 a trained network leaves nearly all negatives without weight: for most samples all of a block's, and for
most rows all samples'.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.runtime.matmul import matmul

_MOST = 0.8  # where more of a block's samples or classes stay than that, gathering them costs more than keeping all


@dataclass
class FilteredBlock:
    """What is left of a block's weights.

    Attributes:
        samples: [a] samples with a weight that counts; None: all.
        weights: [n, a] theirs on the rows that stay.
        whole: all rows stay, so that there are few shapes, as `matmul` likes it.
    """

    samples: Tensor | None
    weights: Tensor
    whole: bool

    def times(self, queries: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Weights of rows [start, stop) times queries [G, D], into `out` [stop - start, D]."""
        multiply = matmul if self.whole else torch.mm
        multiply(self.weights[start:stop], queries if self.samples is None else queries[self.samples], out=out)

    def add_transposed(self, rows: Tensor, out: Tensor) -> None:
        """Add weights transposed times rows [n, D] to `out` [G, D]."""
        multiply = matmul if self.whole else torch.mm
        part = multiply(self.weights.T, rows, out=rows.new_empty(self.weights.shape[1], rows.shape[1]))
        if self.samples is None:
            out.add_(part)
        else:
            out.index_add_(0, self.samples, part)


def kept_samples(alive: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Numbers [a] of the samples that are `alive` [G] in a block; None: so many that all stay."""
    return None if alive.mean() > _MOST else np.flatnonzero(alive)


def kept_classes(weights: Tensor, eps: float, per_class: int, targets: Tensor) -> Tensor | None:
    """Places of a block's classes where a weight reaches `eps`, and of targets; None: so many that all stay.

    Args:
        weights: [n·K, a] of the samples that have any in this block.
        eps: smallest weight that counts.
        per_class: K.
        targets: [t] places that stay.
    """
    keep = (weights.abs() >= eps).any(dim=1).view(-1, per_class).any(dim=1)
    keep[targets] = True
    places = keep.nonzero()[:, 0]
    return None if len(places) > _MOST * len(keep) else places
