"""A segment of a gallery: rows that were written together, and what is known of each.

SEGMENT/embeddings.npy   float32 [N, D], unit rows; mapped into memory, not read
SEGMENT/entries.arrow    what is known about each row

Where it was built with rows of fewer bits, or in cells, `dist_train.embed.compact` and `.cells` say what else is there.
Its files are never changed once they have their names.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.embed.cells import Cells, write_cells
from dist_train.embed.compact import CompactGallery, CompactWriter, Rows
from dist_train.embed.table import NAMES, load_array, write_array
from dist_train.evaluate.search import nearest
from dist_train.runtime.written import written

ENTRIES = NAMES.append(pa.field("source", pa.int32(), nullable=False))
_EMBEDDINGS, _ENTRIES_NAME = "embeddings.npy", "entries.arrow"
_BATCH_ROWS = 1 << 16


def write_segment(
    directory: Path,
    parts: Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]],
    shape: tuple[int, int],
    kind: Rows,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the files of a segment; what a gallery's description has to say of it.

    Args:
        directory: exists.
        parts: entries in `ENTRIES`, and their unit rows [n, D].
        shape: (N, D) of all parts together.
        kind: how the rows are searched.
        quiet: show no bar while they are divided into cells.

    Raises:
        ImportError: cells need faiss, which is not installed.
        OSError: the disk refuses.
    """
    with ExitStack() as files:
        compact = None if kind in (Rows.float32, Rows.cells) else CompactWriter(directory, kind, shape, files)
        rows_file = files.enter_context(written(directory / _EMBEDDINGS))
        entries_file = files.enter_context(written(directory / _ENTRIES_NAME))
        stored = files.enter_context(pa.ipc.new_file(entries_file, ENTRIES))

        def unit_rows() -> Iterator[NDArray[np.float32]]:
            held: list[pa.RecordBatch] = []
            for entries, unit in parts:
                if compact is not None:
                    compact.add(unit)
                yield unit
                held = _flush(stored, [*held, entries], _BATCH_ROWS)
            _flush(stored, held, 1)

        write_array(rows_file, unit_rows(), shape)
    described: dict[str, Any] = {"rows": shape[0]}
    if compact is not None:
        described["compact"] = compact.described()
    if kind is Rows.cells:
        described["cells"] = write_cells(directory, load_array(directory / _EMBEDDINGS, "c"), quiet)
    return described


def _flush(entries: pa.ipc.RecordBatchFileWriter, held: list[pa.RecordBatch], least: int) -> list[pa.RecordBatch]:
    """Write what is held in batches of `_BATCH_ROWS`, once it has `least` rows; what is still held."""
    count = sum(batch.num_rows for batch in held)
    if count < least:
        return held
    table = pa.Table.from_batches(held).combine_chunks()
    whole = count if least == 1 else count // _BATCH_ROWS * _BATCH_ROWS
    for batch in table.slice(0, whole).to_batches(max_chunksize=_BATCH_ROWS):
        entries.write_batch(batch)
    rest: list[pa.RecordBatch] = table.slice(whole).to_batches()
    return rest


class Segment:
    """A segment on disk.

    Args:
        directory: of its files.
        described: what the gallery says of it: `rows`, and `compact` or `cells` where it has such.
        dim: D.

    Attributes:
        exact: unit rows float32 [N, D].
        kind: how rows are searched that are appended to them.

    Raises:
        OSError: a file cannot be read.
        ValueError, TypeError, LookupError: damaged, or not what is described.
    """

    def __init__(self, directory: Path, described: dict[str, Any], dim: int) -> None:
        # Copy on write: torch warns of arrays that cannot be written.
        self.exact = torch.from_numpy(load_array(directory / _EMBEDDINGS, "c"))
        self._compact = CompactGallery(directory, described["compact"], self.exact) if "compact" in described else None
        self._cells = Cells(directory, described["cells"], self.exact) if "cells" in described else None
        self.kind = Rows.int8 if self._cells else Rows(described["compact"]["rows"]) if self._compact else Rows.float32
        self._entries = pa.ipc.open_file(pa.memory_map(str(directory / _ENTRIES_NAME)))
        self._valid: set[int] = set()
        if not self._entries.schema.equals(ENTRIES):
            raise ValueError(f"columns {', '.join(self._entries.schema.names)}, expected {', '.join(ENTRIES.names)}")
        stored = sum(self._entries.get_batch(n).num_rows for n in range(self._entries.num_record_batches))
        shape = [int(described["rows"]), dim]
        if list(self.exact.shape) != shape or stored != shape[0]:
            raise ValueError(f"{stored} entries and embeddings {list(self.exact.shape)}, expected {shape}")

    def __len__(self) -> int:
        return len(self.exact)

    def nearest(self, queries: Tensor, k: int, removed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k rows with the largest inner product, as `dist_train.evaluate.search.nearest`; in cells, of those read.

        Args:
            queries: of length 1, [Q, D].
            k: how many, at most the rows that are not removed.
            removed: bool [N], rows that are not found; None for none.
        """
        if self._cells is not None:
            return self._cells.nearest(queries, k, removed)
        if self._compact is not None:
            return self._compact.nearest(queries, k, removed)
        return nearest(queries, self.exact, k, removed=removed)

    def entries(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Number of the first row, and entries, batch by batch.

        Raises:
            OSError, ValueError, pa.ArrowException: damaged.
        """
        start = 0
        for number in range(self._entries.num_record_batches):
            batch = self._entries.get_batch(number)
            batch.validate(full=True)  # values of a damaged file would end the process when they are read
            yield start, batch
            start += batch.num_rows

    def entry(self, row: int) -> dict[str, Any]:
        """What is known of a row, by column.

        Raises:
            OSError, ValueError, pa.ArrowException: damaged.
        """
        number = row // _BATCH_ROWS
        batch = self._entries.get_batch(number)
        if number not in self._valid:  # once: it looks at every value, and a search may find thousands of rows
            batch.validate(full=True)
            self._valid.add(number)
        entry: dict[str, Any] = batch.slice(row % _BATCH_ROWS, 1).to_pylist()[0]
        return entry
