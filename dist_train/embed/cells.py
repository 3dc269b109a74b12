"""A gallery's rows in cells, of which a search reads those nearest to a query: an inverted file.

GALLERY/cell_centers.npy  float32 [C, D], of length 1
GALLERY/cell_starts.npy   int64 [C + 1], where each cell begins in the following, and where the last one ends
GALLERY/cell_rows.npy     int64 [N], the rows' numbers, cell by cell
GALLERY/cell_values.npy   int8 [N, D], and
GALLERY/cell_scales.npy   float32 [N]: the rows in that order, as `dist_train.embed.compact` has them

faiss divides the rows (spherical k-means); what it made is stored as plain arrays, so that a search needs no faiss, and
no reader of its format. A match in a cell that is not read is missed. How many cells are read is measured when the
gallery is built: the fewest in which `FOUND` of a sample's rows have their nearest other row.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.embed.compact import ROUNDING, Rows, compact_rows
from dist_train.embed.table import load_shaped, start_array
from dist_train.errors import UserError
from dist_train.evaluate.search import nearest
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.written import written

logger = logging.getLogger(__name__)

FOUND = 0.99
_PER_ROOT = 4  # cells for each square root of the number of rows
_LEAST_ROWS = 39  # to a cell, of those that it is found by
_MOST_ROWS = 64
_ROUNDS = 10
_SAMPLE = 1000
_BLOCK = 1 << 16
_CANDIDATES, _MORE = 128, 8
_NAMES = {each: f"cell_{each}.npy" for each in ("centers", "starts", "rows", "values", "scales")}


def write_cells(directory: Path, exact: NDArray[np.float32], quiet: bool) -> dict[str, Any]:
    """Divide rows into cells, and write their files; what a gallery's description has to say of them.

    Memory is 64 rows for each of 4 √N cells, and 24 bytes a row.

    Args:
        directory: of the gallery.
        exact: unit rows [N, D], N at least 1.
        quiet: show no bar.

    Raises:
        ImportError: faiss is not installed.
        OSError: the disk refuses.
    """
    import faiss

    exact = np.asarray(exact)  # of a mapped one faiss knows no type, once a library has taught it torch
    count, dim = exact.shape
    cells = max(1, min(int(_PER_ROOT * count**0.5), count // _LEAST_ROWS))
    logger.info("%s rows are divided into %s cells", f"{count:,}", f"{cells:,}")  # minutes, of millions of rows
    kmeans = faiss.Kmeans(
        dim, cells, niter=_ROUNDS, spherical=True, min_points_per_centroid=1, max_points_per_centroid=_MOST_ROWS
    )
    kmeans.train(np.ascontiguousarray(exact[:: -(-count // (_MOST_ROWS * cells))]))
    centers = np.asarray(kmeans.centroids, "<f4")
    cell_of = np.empty(count, np.int32)
    with progress_bar(total=count, unit=" rows", desc="cells", disable=quiet, mininterval=0.5) as bar:
        for start in range(0, count, _BLOCK):
            found = kmeans.index.search(exact[start : start + _BLOCK], 1)[1][:, 0]
            cell_of[start : start + _BLOCK] = found
            bar.update(len(found))
    order = np.argsort(cell_of, kind="stable")
    starts = np.concatenate([[0], np.bincount(cell_of, minlength=cells).cumsum()])
    whole = {"centers": centers, "starts": starts.astype("<i8"), "rows": order.astype("<i8")}
    for name, values in whole.items():
        with written(directory / _NAMES[name]) as file:
            np.save(file, values)
    error, scales = 0.0, np.empty(count, np.float32)
    with written(directory / _NAMES["values"]) as file:
        start_array(file, (count, dim), "|i1")
        for start in range(0, count, _BLOCK):
            part = slice(start, start + _BLOCK)
            values, scales[part], worst = compact_rows(exact[order[part]], Rows.int8)
            file.write(values.tobytes())
            error = max(error, worst)
    with written(directory / _NAMES["scales"]) as file:
        np.save(file, scales.astype("<f4"))
    probes, share = _measured(torch.from_numpy(exact), torch.from_numpy(centers), torch.from_numpy(cell_of))
    return {"count": cells, "probes": probes, "found": share, "error": error}


def _measured(exact: Tensor, centers: Tensor, cell_of: Tensor) -> tuple[int, float]:
    """How many cells to read, and the share of the sample's rows that have their nearest other row in these."""
    if len(exact) == 1:
        return 1, 1.0
    asked = torch.arange(0, len(exact), max(1, len(exact) // _SAMPLE))
    queries = exact[asked]
    rows = nearest(queries, exact, 2)[1]
    other = torch.where(rows[:, 0] == asked, rows[:, 1], rows[:, 0])
    scores = queries @ centers.T
    before = (scores > scores.gather(1, cell_of[other].long()[:, None])).sum(dim=1).sort()[0]
    probes = int(before[int(np.ceil(FOUND * len(before))) - 1]) + 1
    return probes, float((before < probes).double().mean())


class Cells:
    """Rows in cells on disk, mapped into memory, beside the exact ones.

    Args:
        directory: of the gallery.
        described: what its description says of them.
        exact: float32 [N, D].

    Raises:
        OSError: a file cannot be read.
        ValueError, TypeError, LookupError: damaged, or not of these rows.
    """

    def __init__(self, directory: Path, described: dict[str, Any], exact: Tensor) -> None:
        cells, self._probes, self._error = int(described["count"]), int(described["probes"]), float(described["error"])
        if not 1 <= self._probes <= cells <= len(exact) or not 0 <= self._error <= 1:
            raise ValueError(f"{self._probes} of {cells} cells, {len(exact)} rows, an error of {self._error}")
        wanted: dict[str, tuple[type, list[int]]] = {
            "centers": (np.float32, [cells, exact.shape[1]]),
            "starts": (np.int64, [cells + 1]),
            "rows": (np.int64, [len(exact)]),
            "values": (np.int8, list(exact.shape)),
            "scales": (np.float32, [len(exact)]),
        }
        arrays = {
            name: torch.from_numpy(load_shaped(directory / _NAMES[name], kind, shape))
            for name, (kind, shape) in wanted.items()
        }
        self._starts = arrays["starts"].tolist()
        if self._starts[0] != 0 or self._starts[-1] != len(exact) or self._starts != sorted(self._starts):
            raise ValueError(f"{_NAMES['starts']} does not rise from 0 to {len(exact)}")
        self._directory, self._exact, self._centers = directory, exact, arrays["centers"]
        self._rows, self._values, self._scales = arrays["rows"], arrays["values"], arrays["scales"]

    def nearest(self, queries: Tensor, k: int, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k rows with the largest exact inner product in the cells nearest to each query.

        As many more cells are read as k rows need.

        Args:
            queries: of length 1, [Q, D].
            k: how many, at most the rows that are not removed.
            removed: bool [N], rows that are not found; None for none.

        Returns:
            Scores [Q, k], falling, and row numbers int64 [Q, k].

        Raises:
            UserError: the files name rows that are not there.
        """
        found = [self._of_one(query, k, removed) for query in queries]
        scores, rows = (torch.stack(each) for each in zip(*found, strict=True))
        return scores, rows

    def _of_one(self, query: Tensor, k: int, removed: Tensor | None) -> tuple[Tensor, Tensor]:
        order = (self._centers @ query).argsort(descending=True)
        read = self._probes
        while True:
            approximate, rows = self._scores(query, order[:read].tolist())
            if removed is not None:
                living = ~removed[rows]
                approximate, rows = approximate[living], rows[living]
            if len(rows) >= k or read >= len(order):
                break
            read *= 2
        count = max(_CANDIDATES, 4 * k)
        while True:
            candidates, place = approximate.topk(min(count, len(rows)))
            numbers = rows[place]
            best, at = (self._exact[numbers] @ query).topk(k)
            # Not "smaller": a score that is not a number must come to light.
            if len(candidates) == len(rows) or candidates[-1] + self._error + ROUNDING < best[-1]:
                return best, numbers[at]
            count *= _MORE

    def _scores(self, query: Tensor, cells: list[int]) -> tuple[Tensor, Tensor]:
        """Approximate scores [n] of the rows of cells, and the rows' numbers [n]."""
        spans = [slice(self._starts[cell], self._starts[cell + 1]) for cell in cells]
        scores = torch.cat([(self._values[each].float() @ query).mul_(self._scales[each]) for each in spans])
        rows = torch.cat([self._rows[each] for each in spans])
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self._exact):
            path = self._directory / _NAMES["rows"]
            raise UserError(f"{path}: damaged: it names rows that are not there; build the gallery again")
        return scores, rows
