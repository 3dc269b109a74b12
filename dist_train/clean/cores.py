"""The core of each identity: a centre that wrong pictures do not pull, and each picture's cosine to the others' centre.

A picture counts by the fourth power of its cosine to the centre of its identity's other pictures, and the centre is
taken again, a few times. The weight of a minority falls in every round, also where it is one other person.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_POWER, _ROUNDS = 4, 5
_ROWS = 1 << 15  # at a time
_LEAST = 1e-6


@dataclass(frozen=True)
class Cores:
    """Identities as their pictures show them.

    Attributes:
        labels: int64 [N]; -1 is nobody's.
        counts: pictures of each identity, int64 [C].
        weights: of each picture, float32 [N].
        own: cosine of each picture to the centre of its identity's others, nan where there are none, float32 [N].
        sums: weighted sums of each identity's pictures, float32 [C, D].
        weight_sums: float32 [C].
        effective: number of pictures of equal weight that would scatter as much, float32 [C].
    """

    labels: Tensor
    counts: Tensor
    weights: Tensor
    own: Tensor
    sums: Tensor
    weight_sums: Tensor
    effective: Tensor

    @property
    def centers(self) -> Tensor:
        """Unit rows [C, D]; zero where an identity has no pictures."""
        return torch.nn.functional.normalize(self.sums, dim=1)


def find_cores(features: Tensor, labels: Tensor, classes: int) -> Cores:
    """The cores of unit rows [N, D] with labels [N] below `classes`."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes)
    weights = (labels >= 0).float()
    own = torch.full((len(labels),), torch.nan)
    for _ in range(_ROUNDS):
        sums = _sums(features, labels, weights, classes)
        own = _own_cosines(features, labels, weights, sums, counts)
        weights = own.clamp_min(0).nan_to_num(1.0) ** _POWER
        weights[labels < 0] = 0
        # Where no picture agrees with any other, all count the same.
        weights = torch.where(_totals(weights, labels, classes)[labels] < _LEAST, (labels >= 0).float(), weights)
    sums = _sums(features, labels, weights, classes)
    own = _own_cosines(features, labels, weights, sums, counts)
    totals = _totals(weights, labels, classes)
    effective = totals**2 / _totals(weights**2, labels, classes).clamp_min(_LEAST)
    return Cores(labels, counts, weights, own, sums, totals, effective)


def chunks(count: int) -> Iterator[slice]:
    """Slices of `count` rows whose copies take little memory."""
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _totals(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    labelled = labels >= 0
    return torch.zeros(classes).index_add_(0, labels[labelled], values[labelled])


def _sums(features: Tensor, labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    sums = torch.zeros(classes, features.shape[1])
    for rows in chunks(len(features)):
        sums.index_add_(0, labels[rows].clamp_min(0), weights[rows, None] * features[rows])  # nobody's weigh nothing
    return sums


def _own_cosines(features: Tensor, labels: Tensor, weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    squares = (sums * sums).sum(dim=1)
    own = torch.empty(len(features))
    for rows in chunks(len(features)):
        identity, weight = labels[rows].clamp_min(0), weights[rows]
        product = (features[rows] * sums[identity]).sum(dim=1)
        rest = (squares[identity] - 2 * weight * product + weight**2).clamp_min(_LEAST)
        own[rows] = (product - weight) / rest.sqrt()
    own[(labels < 0) | (counts[labels.clamp_min(0)] < 2)] = torch.nan
    return own.clamp(-1, 1)
