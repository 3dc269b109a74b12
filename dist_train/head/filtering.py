"""Softmax weights without the samples and rows on which none is large enough to matter.

With s = 64 a trained network leaves nearly all negatives without weight: for most samples all of a block's, and for
most rows all samples'.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.head.arithmetic import Arithmetic
from dist_train.head.records import ChosenRows, Forward
from dist_train.head.weights import Negatives, Recomputed, WholeWeights, scaled
from dist_train.head.workspace import Workspace

_MOST = 0.8  # of a block's samples or classes: where more stay, gathering costs more than keeping all


@dataclass(frozen=True, slots=True)
class FilteredBlock:
    """What is left of a block's weights.

    Attributes:
        samples: [a] samples with a weight that counts; None: all.
        weights: [n, a] the weights of these samples on the rows that stay.
        whole: True if no row was dropped; shapes then repeat and oneDNN's kernel cache (`matmul`) pays off.
        arithmetic: of the products.
    """

    samples: Tensor | None
    weights: Tensor
    whole: bool
    arithmetic: Arithmetic

    def times(self, queries: Tensor, start: int, stop: int, out: Tensor) -> None:
        """Weights of rows [start, stop) times queries [G, D], into `out` [stop - start, D]."""
        some = queries if self.samples is None else queries[self.samples]
        self.arithmetic.matmul(self.weights[start:stop], some, out=out, repeats=self.whole)

    def add_transposed(self, rows: Tensor, out: Tensor) -> None:
        """Add weights transposed times rows [n, D] to `out` [G, D]."""
        part = rows.new_empty(self.weights.shape[1], rows.shape[1])
        self.arithmetic.matmul(self.weights.T, rows, out=part, repeats=self.whole)
        if self.samples is None:
            out.add_(part)
        else:
            out.index_add_(0, self.samples, part)


class Filtered:
    """The weights that count, block by block; blocks beyond the memory budget are formed again.

    Args:
        rows: the rows that stay.
        queries: [G, D] the global batch.
        blocks: what is left of each block; None: to be formed again.
        cuts: [blocks + 1] where among the classes that stay each block begins; the last one is their number.
        again: the same weights formed again.
        buffer: of the forward pass, which blocks may be views of.
        workspace: holds the scaled queries.
    """

    def __init__(
        self,
        rows: ChosenRows,
        queries: Tensor,
        blocks: Sequence[FilteredBlock | None],
        cuts: NDArray[np.int64],
        again: Recomputed,
        buffer: Tensor | None,
        workspace: Workspace,
    ) -> None:
        self.buffer = buffer
        self.reads_rows = any(block is None for block in blocks)
        whole = 0 if buffer is None else buffer.nbytes
        self.kept_bytes = whole + sum(b.weights.nbytes for b in blocks if b is not None and b.samples is not None)
        self._k = rows.k
        self._queries = queries
        self._blocks = blocks
        self._cuts = cuts
        self._again = again
        self._workspace = workspace

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """See `Weights`."""
        inner = self._cuts[(self._cuts > low) & (self._cuts < high)].tolist()
        ends = [low, *inner, high] if low < high else []
        yield from pairwise(ends)

    def times(self, factor: Tensor, rows: Tensor, start: int, stop: int, out: Tensor) -> None:
        """See `Weights`."""
        number = int(np.searchsorted(self._cuts, start, side="right")) - 1
        block, first = self._blocks[number], int(self._cuts[number])
        if block is None:
            self._again.times(factor, rows, start, stop, out)
            return
        queries = scaled(self._queries, factor.expand(len(self._queries)), self._workspace)
        block.times(queries, (start - first) * self._k, (stop - first) * self._k, out)


def keep_what_counts(
    forward: Forward,
    weights: WholeWeights,
    again: Recomputed,
    log_sum: Tensor,
    eps: float,
    budget: int,
    workspace: Workspace,
) -> Negatives:
    """The negatives' part without samples and classes whose weights all lie below `eps`.

    A sample is dropped from a whole block, by its largest logit there; a class for all samples. Targets stay. Where
    classes are dropped, the pass's lease is exchanged for one on the others.

    Args:
        forward: a pass, its exponentials not over row norms.
        weights: the pass's.
        again: the same, formed again.
        log_sum: [G] logarithm of the sum of exponentials over all ranks.
        eps: smallest weight that counts.
        budget: bytes of weights that may stay until the step.
        workspace: for the step's products.
    """
    rows, queries, buffer = forward.rows, forward.queries, weights.buffer
    kept_bytes = weights.kept_bytes
    alive = (forward.block_max - log_sum >= math.log(eps)).cpu().numpy()
    numbers = np.union1d(np.flatnonzero(alive.any(axis=1)), rows.places.host // rows.block)
    gradient = torch.zeros_like(queries)
    blocks: list[FilteredBlock | None] = []
    cuts, kept = [0], [rows.places.positions[:0]]
    for number in numbers.tolist():
        start = number * rows.block
        stop = min(start + rows.block, rows.lease.count)
        few = kept_samples(alive[number])
        samples = None if few is None else torch.from_numpy(few).to(queries.device)
        some = weights.block(number, start, stop, samples)
        block, centers, places = _filter_block(rows, start, stop, samples, some, eps, again.arithmetic)
        block.add_transposed(centers.view(-1, queries.shape[1]), gradient)
        # Weights of all samples are a view of the forward pass's buffer, or of the workspace.
        kept_bytes += block.weights.nbytes if samples is not None or buffer is None else 0
        fits = kept_bytes <= budget and (samples is not None or buffer is not None)
        blocks.append(block if fits else None)
        kept.append(places + start)
        cuts.append(cuts[-1] + len(places))
    if cuts[-1] < rows.lease.count:
        rows = _narrowed(rows, torch.cat(kept))
        again = again.narrowed(rows)
    filtered = Filtered(rows, queries, blocks, np.array(cuts), again, buffer, workspace)
    return Negatives(rows, filtered, gradient, torch.ones_like(log_sum))


def _filter_block(
    rows: ChosenRows,
    start: int,
    stop: int,
    samples: Tensor | None,
    weights: Tensor,
    eps: float,
    arithmetic: Arithmetic,
) -> tuple[FilteredBlock, Tensor, Tensor]:
    """What is left of the block of chosen classes [start, stop), its centers [n, K·D], and its classes' places [n].

    Args:
        rows: the chosen rows.
        start: first class of the block.
        stop: one past its last.
        samples: [a] samples with a weight that counts; None: all.
        weights: [(stop - start)·K, a] not over row norms; changed.
        eps: smallest weight that counts.
        arithmetic: of the products.
    """
    here = rows.places.positions[rows.places.between(start, stop)] - start
    places = kept_classes(weights, eps, rows.k, here)
    inverse, whole = rows.inverse_of(start, stop), places is None
    if places is None:
        centers = rows.lease.read("centers", start, stop)
        places = torch.arange(stop - start, device=weights.device)
    else:
        centers = rows.lease.pick("centers", places + start)
        weights = weights.unflatten(0, (-1, rows.k))[places].flatten(0, 1)
        inverse = None if inverse is None else inverse.view(-1, rows.k)[places].flatten()
    if inverse is not None:
        weights.mul_(inverse[:, None])
    return FilteredBlock(samples, weights, whole, arithmetic), centers, places


def _narrowed(rows: ChosenRows, places: Tensor) -> ChosenRows:
    """The rows at sorted `places` among the chosen, with a lease of their own."""
    host = places.cpu().numpy()
    classes = host if rows.classes is None else rows.classes[host]
    inverse = None if rows.inverse is None else rows.inverse.view(-1, rows.k)[places].flatten()
    lease = rows.lease.exchanged(torch.from_numpy(classes))
    return dataclasses.replace(rows, lease=lease, classes=classes, places=rows.places.among(host), inverse=inverse)


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
