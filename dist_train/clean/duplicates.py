"""Pictures that are there twice: within an identity, in others that are near, and in a test set.

Embeddings propose pairs, since those of copies are near; pixels decide, since those of other views can be as near.
Within an identity all pairs are compared. Across identities a picture is compared with the pictures of the identities
nearest to it, and with its nearest among all such pictures, if it may have a wrong label or is alone; and with all
pictures of an identity that is one with its own.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dist_train.clean.cores import Cores
from dist_train.clean.likeness import ReadFn, likenesses
from dist_train.clean.mixture import Floats
from dist_train.clean.neighbours import nearest_rows
from dist_train.clean.outliers import Outliers
from dist_train.data.counters import Ints
from dist_train.evaluate.identification import mate_pairs, paired_products
from dist_train.runtime.ranks import Ranks

_ROWS = 2048  # whose products are formed at a time
_SUSPECTS = 1024
_LOOSE = 4  # nearest among pictures whose identity says nothing
_MOST_GATE = 0.9


class Pairs(NamedTuple):
    """Pairs of pictures that are near.

    Attributes:
        rows: numbers of the pictures, int64 [P, 2].
        cosine: of their embeddings [P].
        likeness: of their pixels; nan as long as these were not compared [P].
    """

    rows: Ints
    cosine: Floats
    likeness: Floats


def gate(features: Tensor, labels: Tensor) -> float:
    """Cosine from which two pictures may be one: above three quarters of the pairs of an identity, at most 0.9."""
    order = torch.argsort(labels, stable=True)
    same = (labels[order[1:]] == labels[order[:-1]]) & (labels[order[1:]] >= 0)
    left, right = order[:-1][same], order[1:][same]
    step = max(1, len(left) // 100_000)
    cosines = paired_products(features, features, left[::step], right[::step])
    return min(_MOST_GATE, float(cosines.quantile(0.75))) if len(cosines) else _MOST_GATE


def near_pairs(features: Tensor, cores: Cores, one: Ints, outliers: Outliers, least: float, ranks: Ranks) -> Pairs:
    """Pairs of pictures with a cosine of at least `least`; a collective."""
    parts = [_within(features, one[cores.labels.clamp_min(0).numpy()], cores.labels.numpy() >= 0, least)]
    labels = cores.labels.numpy()
    for start in range(0, len(outliers.rows), _SUSPECTS):
        rows, near = outliers.rows[start : start + _SUSPECTS], outliers.near[start : start + _SUSPECTS]
        probes = torch.from_numpy(np.repeat(rows, near.shape[1]))
        at, mates = mate_pairs(torch.from_numpy(np.where(near < 0, -2, near).reshape(-1)), cores.labels)
        parts.append(_near(features, probes[at], mates, least))
    alone = np.flatnonzero((labels < 0) | (cores.counts[cores.labels.clamp_min(0)].numpy() < 2))
    loose = np.union1d(alone, outliers.rows)
    if len(loose):
        own = features[torch.from_numpy(loose)]
        scores, places = nearest_rows(own, own, _LOOSE + 1, ranks)
        left = np.repeat(loose, places.shape[1])
        right, cosine = loose[places.numpy().reshape(-1)], scores.numpy().reshape(-1)
        near = (left != right) & (cosine >= least)
        parts.append((np.stack([left[near], right[near]], axis=1), cosine[near]))
    rows, cosine = (np.concatenate(each) for each in zip(*parts, strict=True))
    rows = np.sort(rows, axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    return Pairs(rows[first], cosine[first], np.full(len(first), np.nan, np.float32))


def _within(features: Tensor, identity: Ints, labelled: np.ndarray, least: float) -> tuple[Ints, Floats]:
    order = np.flatnonzero(labelled)
    order = order[np.argsort(identity[order], kind="stable")]
    sorted_ids = identity[order]
    ends = np.searchsorted(sorted_ids, sorted_ids, side="right")
    found = []
    for start in range(0, len(order), _ROWS):
        stop = min(start + _ROWS, len(order))
        last = int(ends[stop - 1])
        rows, columns = torch.from_numpy(order[start:stop]), torch.from_numpy(order[start:last])
        for begin in range(0, len(columns), 4 * _ROWS):
            cosines = features[rows] @ features[columns[begin : begin + 4 * _ROWS]].T
            left, right = (cosines >= least).nonzero().T.numpy()
            right = right + begin
            kept = (sorted_ids[start + left] == sorted_ids[start + right]) & (left < right)
            left, right = left[kept], right[kept]
            pairs = np.stack([order[start + left], order[start + right]], axis=1)
            found.append((pairs, cosines.numpy()[left, right - begin]))
    empty = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    pairs, cosines_of = (np.concatenate(each) for each in zip(empty, *found, strict=True))
    return pairs, cosines_of


def _near(features: Tensor, left: Tensor, right: Tensor, least: float) -> tuple[Ints, Floats]:
    cosines = paired_products(features, features, left, right)
    near = (cosines >= least) & (left != right)
    return torch.stack([left[near], right[near]], dim=1).numpy(), cosines[near].numpy()


def near_in_test(features: Tensor, test: Tensor, least: float, ranks: Ranks) -> Pairs:
    """Pictures [N, D] whose nearest of a test set's [M, D] has a cosine of at least `least`; a collective."""
    scores, places = nearest_rows(features, test, 1, ranks)
    rows = (scores[:, 0] >= least).nonzero().squeeze(1).numpy()
    pairs = np.stack([rows, places[:, 0].numpy()[rows]], axis=1)
    return Pairs(pairs, scores[:, 0].numpy()[rows], np.full(len(rows), np.nan, np.float32))


def alike(pairs: Pairs, read: ReadFn, other: ReadFn, least: float, ranks: Ranks) -> Pairs:
    """The pairs whose pixels are alike by `least`; a collective."""
    found = likenesses(read, other, pairs.rows, ranks)
    kept = found >= least
    return Pairs(pairs.rows[kept], pairs.cosine[kept], found[kept])


def to_leave_out(pairs: Pairs, worth: Floats) -> tuple[Ints, Ints, Ints]:
    """Of pictures that are the same the one of the largest worth stays.

    Returns:
        Numbers of the pictures that go, of the one that stays for each, and of the pair that says so.
    """
    order = np.argsort(-pairs.cosine, kind="stable")
    parent = {int(row): int(row) for row in np.unique(pairs.rows)}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    said: dict[int, int] = {}
    for number in order.tolist():
        left, right = (int(row) for row in pairs.rows[number])
        for row in (left, right):
            said.setdefault(row, number)
        one, other = sorted((root(left), root(right)), key=lambda row: (-worth[row], row))
        parent[other] = one
    going = [row for row in sorted(parent) if root(row) != row]
    empty = np.empty(0, np.int64)
    return tuple(  # type: ignore[return-value]
        np.array(each, np.int64) if len(going) else empty
        for each in (going, [root(row) for row in going], [said[row] for row in going])
    )
