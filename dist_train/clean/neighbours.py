"""Nearest rows by cosine, the queries split over the ranks: exact, or by faiss where the rows are too many for that."""

import importlib.util
import logging

import numpy as np
import torch
from torch import Tensor

from dist_train.evaluate.embeddings import rank_slice
from dist_train.evaluate.search import nearest
from dist_train.runtime.extras import missing
from dist_train.runtime.ranks import Ranks

logger = logging.getLogger(__name__)

FAISS_ROWS = 1 << 18
"""Above, faiss searches where it is installed: all pairs of a million rows take hours of a core."""
_TRAINED = 64  # rows for each cell of faiss's division
_PROBES = 32  # cells that are looked into


def nearest_rows(queries: Tensor, gallery: Tensor, k: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The k gallery rows with the largest inner product for each query, on every rank; a collective.

    Args:
        queries: unit rows [Q, D], the same on every rank.
        gallery: unit rows [N, D], the same on every rank.
        k: how many; all where there are fewer.
        ranks: the processes that share the queries.

    Returns:
        Scores [Q, k], falling, and row numbers int64 [Q, k].
    """
    k = min(k, len(gallery))
    mine = queries[slice(*rank_slice(len(queries), ranks.rank, ranks.world_size))]
    search = _approximately if len(gallery) > FAISS_ROWS and _has_faiss() else nearest
    scores, rows = search(mine, gallery, k)
    parts = ranks.gather((scores.numpy(), rows.numpy()))
    return tuple(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _has_faiss() -> bool:
    if importlib.util.find_spec("faiss") is not None:
        return True
    logger.warning("the exact search of so many identities may take hours; a search by faiss %s", missing("faiss"))
    return False


def _approximately(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    cells = int(4 * len(gallery) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(gallery.shape[1]), gallery.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    rows = gallery.numpy()
    index.cp.min_points_per_centroid = index.cp.max_points_per_centroid = _TRAINED
    index.cp.niter = 5
    index.train(rows[:: max(1, len(rows) // (_TRAINED * cells))])
    index.add(rows)
    index.nprobe = _PROBES
    scores, numbers = index.search(np.ascontiguousarray(queries.numpy()), k)
    found = numbers >= 0  # fewer than k in the cells
    return torch.from_numpy(np.where(found, scores, -1)), torch.from_numpy(np.where(found, numbers, 0))
