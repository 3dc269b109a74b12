"""The nearest rows above a threshold, exact, by blocks: cheaper than those nearest of all, where most rows are far."""

import torch
from torch import Tensor

from dist_train.evaluate.search import score_blocks

_MOST_HELD = 1 << 20  # pairs that are held before they are sorted


def near_rows(queries: Tensor, gallery: Tensor, k: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each query the k gallery rows, or fewer, with the largest inner product that reaches the threshold.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        k: how many at most; of equal ones those that come first, or others where a block holds very many.
        threshold: least inner product.

    Returns:
        Numbers of queries int64 [P], of gallery rows int64 [P], and inner products [P], query by query and falling.
    """
    floors = queries.new_full((len(queries), 1), torch.nextafter(torch.tensor(threshold), torch.tensor(-1.0)).item())
    found = torch.empty((2, 0), dtype=torch.int64, device=queries.device), queries.new_empty(0)
    held = [found]
    pairs = 0
    for rows, columns, scores in score_blocks(queries, gallery):
        near = (scores > floors[rows]).nonzero()
        if not len(near):
            continue
        near = near.T
        held.append((near + near.new_tensor([[rows.start], [columns.start]]), scores[near[0], near[1]]))
        pairs += len(held[-1][1])
        if pairs > _MOST_HELD:
            held = [_nearest(held, k, floors)]
            pairs = len(held[0][1])
    (own, others), products = _nearest(held, k, floors)
    return own, others, products


def _nearest(held: list[tuple[Tensor, Tensor]], k: int, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Of pairs of rows [2, P] with products [P], the k best of each query; its floor rises to the last of them."""
    pairs, products = torch.cat([each for each, _ in held], dim=1), torch.cat([each for _, each in held])
    order = products.argsort(descending=True, stable=True)
    order = order[pairs[0, order].argsort(stable=True)]
    pairs, products = pairs[:, order], products[order]
    counts = torch.bincount(pairs[0], minlength=len(floors))
    first = counts.cumsum(0) - counts
    places = torch.arange(len(products), device=products.device) - first[pairs[0]]
    last = places == k - 1
    floors[pairs[0, last], 0] = products[last]
    return pairs[:, places < k], products[places < k]
