"""Softmax weights of a block of rows without the samples and rows on which none is large enough to matter.

With s = 64 a trained network leaves nearly all negatives without weight: for most samples all of a block's, and for
most rows all samples'.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_SHARE = 0.8  # where more of a block's classes stay than that, gathering them costs more than keeping all


@dataclass
class FilteredBlock:
    """What is left of a block's weights.

    Attributes:
        samples: [a] samples with a weight that counts; None: all.
        weights: [n, a] theirs on the rows that stay.
    """

    samples: Tensor | None
    weights: Tensor

    def times(self, queries: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Weights of rows [start, stop) times queries [G, D], into `out` [stop - start, D]."""
        torch.mm(self.weights[start:stop], queries if self.samples is None else queries[self.samples], out=out)

    def add_transposed(self, rows: Tensor, out: Tensor) -> None:
        """Add weights transposed times rows [n, D] to `out` [G, D]."""
        if self.samples is None:
            out.addmm_(self.weights.T, rows)
        else:
            out.index_add_(0, self.samples, self.weights.T @ rows)


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
    return None if len(places) > _ROWS_SHARE * len(keep) else places
