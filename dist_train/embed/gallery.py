"""A gallery: unit embeddings of known pictures on disk, and the exact search for those nearest to a query.

GALLERY/embeddings.npy   float32 [N, D], unit rows; mapped into memory, not read
GALLERY/entries.arrow    what is known about each row
GALLERY/gallery.json     the model, and the sources of the pictures

Where it was built with rows of fewer bits, `dist_train.embed.compact` says what else is there.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.embed.compact import CompactGallery, CompactWriter, Rows
from dist_train.embed.min_quality import MinQuality
from dist_train.embed.pictures import Place
from dist_train.embed.table import (
    FORMAT_VERSION,
    NAMES,
    EmbeddingFile,
    load_array,
    unit_length,
    write_array,
)
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.fusion_file import parsed_parts
from dist_train.evaluate.search import nearest
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.text import kind_and_line
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, written, written_directory
from dist_train.section import first_difference

ENTRIES = NAMES.append(pa.field("source", pa.int32(), nullable=False))
_GALLERY, _EMBEDDINGS, _ENTRIES_NAME = "gallery.json", "embeddings.npy", "entries.arrow"
_BATCH_ROWS = 1 << 16
_MADE_BY = ("model", "embedding_dim", "image_size", "flip")  # what all embeddings of a gallery must share


class Match(NamedTuple):
    """A row of a gallery that is near to a query.

    Attributes:
        score: cosine of the two embeddings, -1 to 1.
        row: of the gallery.
        place: of the picture in its source.
        source: number of the source in `Gallery.sources`.
        identity: name of whom the picture shows, where known.
        label: class number in its set, where known.
        landmarks: float32 [5, 2], pixels of the photo, where the face was aligned.
    """

    score: float
    row: int
    place: Place
    source: int
    identity: str | None
    label: int | None
    landmarks: NDArray[np.float32] | None


def build_gallery(
    files: Sequence[Path],
    directory: Path,
    quiet: bool = False,
    min_quality: MinQuality | None = None,
    rows: Rows = Rows.float32,
) -> "Gallery":
    """Make a gallery of embeddings that `headcount embed` wrote. It appears by rename, complete.

    Args:
        files: the embeddings, all of one model.
        directory: of the gallery; must not exist.
        quiet: show no bar.
        min_quality: rows of a lower one are left out; None takes all.
        rows: how they are searched: of int8 and float16 there are copies, beside the exact rows.

    Raises:
        UserError: no embeddings, embeddings of several models, or that are not finite or zero, or `directory` exists.
        WorkError: the disk is full, or a file is damaged.
    """
    if directory.exists():
        raise UserError(f"gallery {directory}: exists already; remove it, or name another")
    if len({path.resolve() for path in files}) < len(files):
        raise UserError("an embeddings file is named twice; its pictures would be in the gallery twice")
    opened = [EmbeddingFile(path) for path in files]
    every = sum(each.count for each in opened)
    count = every if min_quality is None else sum(int(min_quality.keeps(n).sum()) for e in opened for n in e.names())
    if every and not count:
        raise UserError(f"gallery {directory}: would be empty: none of {every:,} rows has {min_quality} or more")
    if not count:
        raise UserError(f"gallery {directory}: would be empty: no row in {', '.join(map(str, files)) or 'no file'}")
    made_by = {key: opened[0].description[key] for key in _MADE_BY}
    for each in opened[1:]:
        if found := first_difference(made_by, {key: each.description[key] for key in _MADE_BY}, cut_digests=True):
            raise UserError(
                f"{opened[0].path} and {each.path} were not made in the same way: {found}; embed all pictures of a "
                "gallery with one model"
            )
    body = {"version": FORMAT_VERSION, "rows": count, **made_by, "sources": [e.description["source"] for e in opened]}
    if min_quality is not None:
        body |= {"min_quality": str(min_quality), "left_out": every - count}
    try:
        with write_failures(f"gallery {directory}", MAKE_ROOM), written_directory(directory) as home:
            with ExitStack() as files_of_rows:
                shape = count, opened[0].embedding_dim
                compact = None if rows is Rows.float32 else CompactWriter(home, rows, shape, files_of_rows)
                _write(home, opened, shape, quiet, min_quality, compact)
            write_json(home / _GALLERY, body | ({} if compact is None else {"compact": compact.described()}))
    finally:
        for each in opened:
            each.close()
    return Gallery(directory)


def store_gallery(directory: Path, rows: NDArray[np.float32], entries: pa.Table, body: dict[str, Any]) -> None:
    """Write a gallery that is in memory; it appears by rename, complete.

    Args:
        directory: of the gallery; must not exist.
        rows: unit embeddings [N, D].
        entries: what is known of each, in `ENTRIES`.
        body: the model, the sources, and what else describes it, as JSON values.

    Raises:
        WorkError: the disk is full.
    """
    with write_failures(f"gallery {directory}", MAKE_ROOM), written_directory(directory) as home:
        with written(home / _EMBEDDINGS) as file:
            write_array(file, iter([rows]), (len(rows), rows.shape[1]))
        with written(home / _ENTRIES_NAME) as file, pa.ipc.new_file(file, ENTRIES) as stored:
            _flush(stored, entries.to_batches(), 1)
        write_json(home / _GALLERY, {"version": FORMAT_VERSION, "rows": len(rows), **body})


def _write(
    directory: Path,
    opened: Sequence[EmbeddingFile],
    shape: tuple[int, int],
    quiet: bool,
    min_quality: MinQuality | None,
    compact: CompactWriter | None,
) -> None:
    with (
        written(directory / _EMBEDDINGS) as rows_file,
        written(directory / _ENTRIES_NAME) as entries_file,
        pa.ipc.new_file(entries_file, ENTRIES) as entries,
        progress_bar(total=shape[0], unit=" rows", desc="gallery", disable=quiet, mininterval=0.5) as bar,
    ):

        def unit_rows() -> Iterator[NDArray[np.float32]]:
            held: list[pa.RecordBatch] = []
            for number, each in enumerate(opened):
                start = 0
                for names, features in each.batches():
                    rows = np.arange(start, start + len(features))
                    start += len(features)
                    if min_quality is not None:
                        kept = np.flatnonzero(min_quality.keeps(names))
                        rows, names, features = rows[kept], names.take(pa.array(kept)), features[kept]
                    unit = unit_length(features, names, each.path, rows)
                    if compact is not None:
                        compact.add(unit)
                    yield unit
                    source = pa.array(np.full(len(features), number, np.int32))
                    held.append(pa.RecordBatch.from_arrays([*names.columns, source], schema=ENTRIES))
                    held = _flush(entries, held, _BATCH_ROWS)
                    bar.update(len(features))
            _flush(entries, held, 1)

        write_array(rows_file, unit_rows(), shape)


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


class Gallery:
    """A gallery that `build_gallery` made.

    Args:
        directory: of the gallery.

    Attributes:
        made_by: model, dimension, picture size and mirroring of its embeddings.
        sources: descriptions of where its pictures are from.
        left_out: rows that were of too low a quality when it was built.
        parts: the models that are fused in it; empty for one model alone.
        aligned: for each part, or the one model, whether faces of its pictures were found and aligned.
        thresholds: of the fused cosines, a calibration as JSON; empty where there is none.

    Raises:
        UserError: missing, empty, damaged, or something else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            body = json.loads((directory / _GALLERY).read_text(encoding="utf-8"))
            self.made_by: dict[str, Any] = {key: body[key] for key in _MADE_BY}
            self.sources: list[dict[str, Any]] = body["sources"]
            self.left_out = int(body.get("left_out", 0))
            fusion = body.get("fusion") or {"parts": (), "align": [any(s.get("align") for s in self.sources)]}
            self.parts = parsed_parts(fusion["parts"]) if fusion["parts"] else ()
            self.aligned = [bool(each) for each in fusion["align"]]
            self.thresholds = str(fusion.get("thresholds", ""))
            if self.parts and len(self.aligned) != len(self.parts):
                raise ValueError(f"{len(self.aligned)} notes of aligned pictures for {len(self.parts)} models")
            if self.parts and sum(part.embedding_dim for part in self.parts) != int(self.made_by["embedding_dim"]):
                raise ValueError("its models have embeddings of other sizes")
            # Copy on write: torch warns of arrays that cannot be written.
            self._rows = torch.from_numpy(load_array(directory / _EMBEDDINGS, "c"))
            self._compact = CompactGallery(directory, body["compact"], self._rows) if "compact" in body else None
            self._entries = pa.ipc.open_file(pa.memory_map(str(directory / _ENTRIES_NAME)))
            stored = sum(self._entries.get_batch(n).num_rows for n in range(self._entries.num_record_batches))
            shape = [int(body["rows"]), int(self.made_by["embedding_dim"])]
            if not all(isinstance(source["path"], str) for source in self.sources):
                raise ValueError("a source without a path")
            if not self._entries.schema.equals(ENTRIES):
                raise ValueError(
                    f"columns {', '.join(self._entries.schema.names)}, expected {', '.join(ENTRIES.names)}"
                )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"gallery {directory}: no gallery there; make one with `headcount search build EMBEDDINGS {directory}`"
            ) from error
        except (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError, pa.ArrowException) as error:
            reason = kind_and_line(error)
            raise UserError(f"gallery {directory}: damaged: {reason}; build it again") from error
        if not len(self._rows):
            raise UserError(f"gallery {directory}: it is empty")
        if list(self._rows.shape) != shape or stored != shape[0]:
            raise UserError(
                f"gallery {directory}: {stored} entries and embeddings {list(self._rows.shape)}, expected {shape}; "
                "build it again"
            )

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.made_by["embedding_dim"])

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: Tensor, k: int) -> list[list[Match]]:
        """The rows with the largest cosine, for each query; exact.

        Args:
            queries: embeddings [Q, D], of any length.
            k: how many; all rows where there are fewer.

        Raises:
            UserError: queries of another dimension, not finite or zero, or k below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.embedding_dim:
            raise UserError(
                f"queries {list(queries.shape)}: gallery {self.directory} holds embeddings of "
                f"{self.embedding_dim} numbers"
            )
        norms = queries.double().norm(dim=1)
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            raise UserError("a query's embedding is zero or not finite; the model is damaged")
        unit = (queries.double() / norms[:, None]).float()
        k = min(k, len(self._rows))
        scores, rows = self._compact.nearest(unit, k) if self._compact else nearest(unit, self._rows, k)
        if not bool(torch.isfinite(scores).all()):  # it sorts before all numbers
            row = int(rows[~torch.isfinite(scores)][0])
            raise WorkError(
                f"gallery {self.directory}: row {row} of embeddings.npy is not finite; it was changed: build it again"
            )
        return [
            [self._match(score, row) for score, row in zip(*both, strict=True)]
            for both in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def _match(self, score: float, row: int) -> Match:
        try:
            batch = self._entries.get_batch(row // _BATCH_ROWS)
            batch.validate(full=True)  # values of a damaged file would end the process when they are read
            entry = batch.slice(row % _BATCH_ROWS, 1).to_pylist()[0]
            if entry["source"] is None or not 0 <= entry["source"] < len(self.sources):
                raise ValueError(f"row {row} is of source {entry['source']}, there are {len(self.sources)}")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"gallery {self.directory}: entries.arrow is damaged: {error}; build it again") from error
        points = entry["landmarks"]
        return Match(
            score,
            row,
            Place(entry["path"], entry["offset"], entry["size"]),
            entry["source"],
            entry["identity"],
            entry["label"],
            None if points is None else np.array(points, np.float32).reshape(5, 2),
        )
