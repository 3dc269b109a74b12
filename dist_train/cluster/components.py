"""Clusters that join along links, each its best one: components of a graph, by numbers."""

import numpy as np
from numpy.typing import NDArray

from dist_train.data.counters import Ints


def best_links(left: Ints, right: Ints, weights: NDArray[np.float32], count: int) -> Ints:
    """The other end of each node's heaviest edge, int64 [count]; itself where it has none.

    Of equal edges the later one counts as the heavier, for both its ends: links so lead into pairs, never round.

    Args:
        left: [E] one end of each edge, below `count`.
        right: [E] the other end.
        weights: [E].
        count: nodes.
    """
    order = np.argsort(weights, kind="stable")
    links = np.arange(count)
    # Of values for one place NumPy keeps the last; both ends of an edge must come before those of the next.
    places = np.stack([left[order], right[order]], axis=1).ravel()
    links[places] = np.stack([right[order], left[order]], axis=1).ravel()
    return links


def roots_of(links: Ints) -> Ints:
    """The node that stands for each node's component, int64 [n], where every node links to one by `best_links`."""
    numbers = np.arange(len(links))
    roots = np.where((links[links] == numbers) & (numbers < links), numbers, links)
    while not np.array_equal(further := roots[roots], roots):
        roots = further
    return roots
