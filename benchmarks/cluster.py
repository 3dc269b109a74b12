"""Clusters of simulated embeddings: how well they agree with the identities, beside plain connected components.

Embeddings of an identity have cosines of 0.6 +- 0.1 with each other. `ours` and `baseline` are pairwise F: the harmonic
mean of precision and recall of the pairs of pictures that share a cluster.
"""

import argparse
import resource
import time

import numpy as np
import torch
from line import print_line
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dist_train.cluster.graph import NEIGHBOURS, cluster_by_graph
from dist_train.cluster.neighbours import near_rows
from dist_train.evaluate.search import QUERY_BLOCK
from dist_train.runtime.ranks import ALONE


def simulate(identities: int, pictures: int, dim: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit embeddings [N, dim] in random order, and their identities [N]."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(pictures) % identities)
    centers = _unit(random.standard_normal((identities, dim), dtype=np.float32))
    # The cosine of two pictures is near the root of the product of their shares, which spread accordingly wider.
    shares = np.clip(random.normal(0.6, 0.1 * np.sqrt(2), pictures), 0.05, 0.98).astype(np.float32)[:, None]
    out = _unit(random.standard_normal((pictures, dim), dtype=np.float32))
    out *= np.sqrt(1 - shares)
    out += np.sqrt(shares) * centers[labels]
    return torch.from_numpy(_unit(out)), labels


def components(features: torch.Tensor, threshold: float) -> np.ndarray:
    """The usual way: connected components of the same neighbours above the threshold, [N]."""
    ends = []
    for low in range(0, len(features), QUERY_BLOCK):
        own, others, _ = near_rows(features[low : low + QUERY_BLOCK], features, NEIGHBOURS + 1, threshold)
        ends.append(torch.stack([own + low, others]).numpy())
    left, right = np.concatenate(ends, axis=1)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(features), len(features)))
    found: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def pairwise_f(found: np.ndarray, true: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the pairs that share a cluster."""
    return 2 * _pairs(found * (int(true.max()) + 1) + true) / (_pairs(found) + _pairs(true))


def _pairs(labels: np.ndarray) -> int:
    counts = np.unique(labels, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _unit(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def main() -> None:
    """Cluster one simulated set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["simulated"], default="simulated")
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--identities", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threshold", type=float, default=0.2)
    given = parser.parse_args()
    features, labels = simulate(given.identities, given.pictures, given.dim, seed=0)
    begin = time.perf_counter()
    found = cluster_by_graph(features, given.threshold, ALONE)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours, baseline = pairwise_f(found, labels), pairwise_f(components(features, given.threshold), labels)
    print_line(
        {
            "benchmark": "cluster",
            "case": given.case,
            "ours": round(ours, 4),
            "baseline": round(baseline, 4),
            "ratio": round(ours / baseline, 3),
            "unit": "pairwise F; baseline: connected components of the same neighbours",
            "seconds": round(seconds, 1),
            "clusters": int(found.max()) + 1,
            "peak_rss_mb": round(peak),
            **{key: value for key, value in vars(given).items() if key != "case"},
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    )


if __name__ == "__main__":
    main()
