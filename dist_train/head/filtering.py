"""Softmax weights of a block of rows without those that are too small to matter.

With s = 64 a trained network leaves nearly all negatives without weight. What is left has a shape: for the few
samples that are still hard, most rows matter; for the others a row here and there. So a block keeps whole columns
for the former, multiplied densely, and single entries for the latter, gathered by `embedding_bag`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor

_DENSE_SHARE = 0.3  # a sample with more of a block's rows than that is cheaper multiplied whole
_ROWS_SHARE = 0.8  # where more of a block's classes stay than that, gathering them costs more than keeping all


@dataclass
class SparseWeights:
    """What is left of a block's weights [n, G], as two summands.

    Attributes:
        hard: [h] samples whose columns are kept whole.
        columns: [n, h] their weights.
        samples: [E] samples of the single entries, row by row.
        entries: [E] their weights.
        offsets: [n + 1] where each row's entries begin; the last one is E.
    """

    hard: Tensor
    columns: Tensor
    samples: Tensor
    entries: Tensor
    offsets: Tensor

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(t.nbytes for t in (self.columns, self.samples, self.entries, self.offsets))

    def times(self, queries: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Weights of rows [start, stop) times queries [G, D], into `out` [stop - start, D]."""
        torch.mm(self.columns[start:stop], queries[self.hard], out=out)
        first, last = self.offsets[start], self.offsets[stop]
        bags = self.offsets[start:stop] - first
        out.add_(_bags(self.samples[first:last], self.entries[first:last], bags, queries))

    def add_transposed(self, rows: Tensor, out: Tensor) -> None:
        """Add weights transposed times rows [n, D] to `out` [G, D]."""
        out.index_add_(0, self.hard, self.columns.T @ rows)
        samples, order = self.samples.to(torch.int32).sort(stable=True)  # half the digits to sort by
        counts = torch.bincount(samples, minlength=len(out))
        of_row = torch.repeat_interleave(self.offsets.diff(), output_size=len(order))
        out.add_(_bags(of_row[order], self.entries[order], counts.cumsum(0) - counts, rows))


def _bags(places: Tensor, weights: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of `table`, one from each offset to the next."""
    return F.embedding_bag(places, table, offsets, mode="sum", per_sample_weights=weights)


def kept_classes(large: Tensor, per_class: int, targets: Tensor) -> Tensor | None:
    """Places of a block's classes that have a weight that counts, and of targets; None: so many that all stay.

    Args:
        large: [n·K, a] which weights count, of the samples that have any in this block.
        per_class: K.
        targets: [t] places that stay.
    """
    keep = large.any(dim=1).view(-1, per_class).any(dim=1)
    keep[targets] = True
    places = keep.nonzero()[:, 0]
    return None if len(places) > _ROWS_SHARE * len(keep) else places


def sparsify(weights: Tensor, large: Tensor, samples: Tensor, scale: Tensor | None) -> SparseWeights:
    """Leave out weights that do not count, but for samples where most do.

    Args:
        weights: [n, a] of some samples' columns.
        large: [n, a] which of them count.
        samples: [a] the samples.
        scale: [n] each row's weights are multiplied with it afterwards.
    """
    hard = large.sum(dim=0) > _DENSE_SHARE * len(weights)
    kept, light = hard.nonzero()[:, 0], (~hard).nonzero()[:, 0]
    rows, columns = large.index_select(1, light).nonzero(as_tuple=True)
    places = light[columns]
    dense, entries = weights.index_select(1, kept), weights[rows, places]
    if scale is not None:
        dense.mul_(scale[:, None])
        entries.mul_(scale[rows])
    counts = torch.bincount(rows, minlength=len(weights))
    return SparseWeights(
        samples[kept], dense, samples[places], entries, torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    )
