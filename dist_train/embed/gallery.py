"""A gallery: unit embeddings of known pictures on disk, and the search for those nearest to a query.

GALLERY/gallery.json     the model, the sources of the pictures, and which of the following count
GALLERY/*                the first segment's files: `dist_train.embed.segment`
GALLERY/added-N/*        segments that were appended
GALLERY/removed-N.npy    bool, for each row of all segments in order, whether it was removed; no row after its end was

No file but gallery.json is ever changed: what it says decides, and it is replaced at once. `dist_train.embed.changes`
makes the changes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.embed.compact import Rows
from dist_train.embed.min_quality import MinQuality
from dist_train.embed.pictures import Place
from dist_train.embed.segment import ENTRIES, Segment, write_segment
from dist_train.embed.table import FORMAT_VERSION, EmbeddingFile, unit_length
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.fusion_file import parsed_parts
from dist_train.runtime.extras import require
from dist_train.runtime.files import map_array
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.text import kind_and_line
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, written_directory
from dist_train.section import first_difference

DESCRIPTION = "gallery.json"
MADE_BY = ("model", "embedding_dim", "image_size", "flip")  # what all embeddings of a gallery must share
_DAMAGES = (ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError, pa.ArrowException)
PART_NAME = re.compile(r"(added-\d{1,12}|removed-\d{1,12}\.npy)")


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
        rows: how they are searched: of all but float32 there are copies, beside the exact rows.

    Raises:
        UserError: cells without faiss, no embeddings, embeddings of several models, not finite or zero, or
            `directory` exists.
        WorkError: the disk is full, or a file is damaged.
    """
    if rows is Rows.cells:
        require("faiss", "search build --faiss")
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
    made_by = {key: opened[0].description[key] for key in MADE_BY}
    for each in opened[1:]:
        if found := first_difference(made_by, {key: each.description[key] for key in MADE_BY}, cut_digests=True):
            raise UserError(
                f"{opened[0].path} and {each.path} were not made in the same way: {found}; embed all pictures of a "
                "gallery with one model"
            )
    body = {"version": FORMAT_VERSION, **made_by, "sources": [e.description["source"] for e in opened]}
    if min_quality is not None:
        body |= {"min_quality": str(min_quality), "left_out": every - count}
    shape = count, opened[0].embedding_dim
    try:
        with (
            write_failures(f"gallery {directory}", MAKE_ROOM),
            written_directory(directory) as home,
            progress_bar(total=count, unit=" rows", desc="gallery", disable=quiet, mininterval=0.5) as bar,
        ):
            parts = unit_parts(opened, range(len(opened)), min_quality)
            described = write_segment(home, _shown(parts, bar), shape, rows, quiet)
            write_json(home / DESCRIPTION, body | described)
    finally:
        for each in opened:
            each.close()
    return Gallery(directory)


def _shown(
    parts: Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]],
    bar: Any,  # noqa: ANN401 - tqdm's
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    for part in parts:
        yield part
        bar.update(part[0].num_rows)


def unit_parts(
    opened: Sequence[EmbeddingFile], sources: Sequence[int], min_quality: MinQuality | None = None
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Entries in `ENTRIES`, and their unit rows [n, D], of files with the numbers of their sources.

    Raises:
        UserError: an embedding is zero or not finite.
        WorkError: a file is damaged.
    """
    for number, each in zip(sources, opened, strict=True):
        start = 0
        for names, features in each.batches():
            rows = np.arange(start, start + len(features))
            start += len(features)
            if min_quality is not None:
                kept = np.flatnonzero(min_quality.keeps(names))
                rows, names, features = rows[kept], names.take(pa.array(kept)), features[kept]
            source = pa.array(np.full(len(features), number, np.int32))
            entries = pa.RecordBatch.from_arrays([*names.columns, source], schema=ENTRIES)
            yield entries, unit_length(features, names, each.path, rows)


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
        (batch,) = entries.combine_chunks().to_batches()
        described = write_segment(home, iter([(batch, rows)]), (len(rows), rows.shape[1]), Rows.float32)
        write_json(home / DESCRIPTION, {"version": FORMAT_VERSION, **body, **described})


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
        body: its whole description.
        segments: its rows, in order.
        removed: bool [N], for each row of all segments.

    Raises:
        UserError: missing, empty, damaged, or something else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        while True:
            text = _described(directory)
            try:
                self._open(text)
                break
            except (OSError, *_DAMAGES) as error:
                if _described(directory) == text:  # else it was changed meanwhile, and the files of before are gone
                    reason = kind_and_line(error)
                    raise UserError(f"gallery {directory}: damaged: {reason}; build it again") from error
        if not len(self):
            raise UserError(f"gallery {directory}: it is empty")

    def _open(self, text: str) -> None:
        body = json.loads(text)
        if body["version"] != FORMAT_VERSION:
            raise UserError(
                f"gallery {self.directory}: version {body['version']!r}, expected {FORMAT_VERSION}; build it again, or "
                "read it with the headcount that wrote it"
            )
        self.made_by: dict[str, Any] = {key: body[key] for key in MADE_BY}
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
        if not all(isinstance(source["path"], str) for source in self.sources):
            raise ValueError("a source without a path")
        self.body = body
        homes = [self.directory, *(self.directory / _part_name(each["directory"]) for each in body.get("added", ()))]
        described = [body, *body.get("added", ())]
        self.segments = [Segment(h, d, self.embedding_dim) for h, d in zip(homes, described, strict=True)]
        self._starts = np.cumsum([0, *map(len, self.segments)]).tolist()
        self.removed = torch.zeros(self._starts[-1], dtype=torch.bool)
        if "removed" in body:
            stored = map_array(self.directory / _part_name(body["removed"]), "r")
            if stored.dtype != np.bool_ or stored.ndim != 1 or len(stored) > len(self.removed):
                raise ValueError(f"{body['removed']} is {stored.dtype} {list(stored.shape)}, expected bool [N]")
            self.removed[: len(stored)] = torch.from_numpy(np.array(stored))
        gone = [
            self.removed[start : start + len(each)] for start, each in zip(self._starts, self.segments, strict=False)
        ]
        self._living = [len(each) - int(each.sum()) for each in gone]
        self._gone = [each if bool(each.any()) else None for each in gone]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.made_by["embedding_dim"])

    def __len__(self) -> int:
        return sum(self._living)

    def search(self, queries: Tensor, k: int) -> list[list[Match]]:
        """The rows with the largest cosine, for each query; exact, but for what cells miss.

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
        if k < 1:
            raise UserError(f"k={k}: expected 1 or more")
        norms = queries.double().norm(dim=1)
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            raise UserError("a query's embedding is zero or not finite; the model is damaged")
        unit = (queries.double() / norms[:, None]).float()
        scores, rows = self._nearest(unit, min(k, len(self)))
        if not bool(torch.isfinite(scores).all()):  # it sorts before all numbers
            row = int(rows[~torch.isfinite(scores)][0])
            raise WorkError(
                f"gallery {self.directory}: row {row} of embeddings.npy is not finite; it was changed: build it again"
            )
        return [
            [self._match(score, row) for score, row in zip(*both, strict=True)]
            for both in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def _nearest(self, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and rows [Q, k] of the nearest in all segments."""
        found = []
        for start, segment, gone, living in zip(self._starts, self.segments, self._gone, self._living, strict=False):
            if living:
                scores, rows = segment.nearest(unit, min(k, living), gone)
                found.append((scores, rows + start))
        if len(found) == 1:
            return found[0]
        scores, rows = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        best, place = scores.topk(k, dim=1)
        return best, rows.gather(1, place)

    def _match(self, score: float, row: int) -> Match:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        try:
            entry = self.segments[number].entry(row - self._starts[number])
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


def source_folder(source: dict[str, Any]) -> Path:
    """The folder that the paths of a source's pictures begin in."""
    path = Path(source["path"])
    return path if path.is_dir() else path.parent


def _described(directory: Path) -> str:
    """The description as it is now.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        return (directory / DESCRIPTION).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"gallery {directory}: no gallery there; make one with `headcount search build EMBEDDINGS {directory}`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"gallery {directory}: damaged: {kind_and_line(error)}; build it again") from error


def _part_name(name: str) -> str:
    """A name that leads nowhere else."""
    if not PART_NAME.fullmatch(name):
        raise ValueError(f"a part is named {name!r}")
    return name
