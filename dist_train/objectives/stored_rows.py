"""Stored embeddings as arrays that are mapped into memory: where each tar's rows are, and what is in them."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_train.embed.table import EmbeddingFile, load_array, write_array
from dist_train.embed.tar_keys import tars_of
from dist_train.errors import UserError
from dist_train.runtime.files import map_array, read_bounded
from dist_train.runtime.lock import Lock
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, written

_ROWS, _PLACES, _TARS = "embeddings.npy", "places.npy", "tars.json"
_MOST_TARS_BYTES = 256 << 20
_LOCK_S = 3600.0  # another rank of this machine is writing

Ints = NDArray[np.int64]


class StoredRows(NamedTuple):
    """Embeddings of the pictures in tars.

    Attributes:
        embeddings: float32 [N, Dt], mapped.
        places: int64 [N, 2], mapped: the picture's offset in its tar, rising within one; its label, -1 for none.
        tars: by name of the tar, its first row and one past its last.
        digest: hexadecimal SHA-256 of how they were made.
        source: that was embedded, for messages.
    """

    embeddings: NDArray[np.float32]
    places: Ints
    tars: dict[str, tuple[int, int]]
    digest: str
    source: str


def open_stored_rows(key: str, path: Path, cache_dir: Path) -> StoredRows:
    """The rows of a file that `headcount embed` wrote from tars; what cannot be mapped is copied once.

    Args:
        key: of the recipe that names it.
        path: a `.parquet`, or a `.npy` with its table of names beside it.
        cache_dir: directory of the copies.

    Raises:
        UserError: another file, or one of other pictures than those in tars.
        WorkError: it is damaged, or the disk is full.
    """
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    directory = cache_dir / "teachers" / hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:32]
    try:
        file = EmbeddingFile(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    with closing(file):
        mapped = path.suffix == ".npy"
        with write_failures(f"{key}: copy in {directory}", MAKE_ROOM):
            directory.mkdir(parents=True, exist_ok=True)
            with Lock(directory / ".lock", _LOCK_S):
                if not (directory / _TARS).exists():
                    _copy(key, file, directory, mapped)
        description = json.dumps([file.description, file.count], sort_keys=True)
        try:
            rows = load_array(path if mapped else directory / _ROWS, "r")
            places = map_array(directory / _PLACES, "r")
            tars = _checked(json.loads(read_bounded(directory / _TARS, _MOST_TARS_BYTES)), file.count)
            if rows.shape != (file.count, file.embedding_dim) or places.shape != (file.count, 2):
                raise ValueError(f"{list(rows.shape)} and {list(places.shape)} for {file.count} rows")
            if places.dtype != np.int64:
                raise ValueError(f"places are {places.dtype}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{key} {path}: the copy in {directory} is damaged ({error}); remove it") from error
        source = file.description.get("source")
        named = str(source.get("path")) if isinstance(source, dict) else "unknown"
        return StoredRows(rows, places, tars, hashlib.sha256(description.encode()).hexdigest(), named)


def _copy(key: str, file: EmbeddingFile, directory: Path, mapped: bool) -> None:
    """Write what is mapped later; the list of tars comes last and says that all is there."""
    tars: dict[str, list[int]] = {}
    with written(directory / _PLACES) as places:
        np.lib.format.write_array_header_2_0(places, {"descr": "<i8", "fortran_order": False, "shape": (file.count, 2)})

        def features() -> Iterator[NDArray[np.float32]]:
            start = 0
            for names, rows in file.batches():
                places.write(np.ascontiguousarray(_places(key, file.path, names, tars, start)).tobytes())
                start += len(rows)
                yield rows

        if mapped:
            for _ in features():
                pass
        else:
            with written(directory / _ROWS) as embeddings:
                write_array(embeddings, features(), (file.count, file.embedding_dim))
    write_json(directory / _TARS, tars)


def _places(key: str, path: Path, names: pa.RecordBatch, tars: dict[str, list[int]], start: int) -> Ints:
    """Offsets and labels [n, 2] of rows `start` and on; adds to the ranges of `tars`."""
    tar = tars_of(names.column("path"))
    if tar.null_count or not len(tar):
        row = int(np.flatnonzero(tar.is_null().to_numpy(zero_copy_only=False))[0]) if len(tar) else 0
        raise UserError(
            f"{key} {path}: row {start + row} is no picture in a tar, so that no sample's key is known; embed the "
            "training set itself: headcount embed MODEL SET FILE"
        )
    codes = tar.indices.to_numpy()
    offsets, label = names.column("offset").to_numpy(), names.column("label").fill_null(-1).to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for low, high in pairwise(cuts):
        name = tar.dictionary[int(codes[low])].as_py()
        first, last = tars.setdefault(name, [start + low, start + low])
        rising = bool((np.diff(offsets[low:high]) > 0).all())
        if last != start + low or not rising:
            raise UserError(
                f"{key} {path}: rows of {name} do not follow each other as `headcount embed` writes them (row "
                f"{start + low}); embed again"
            )
        tars[name] = [first, start + high]
    return np.stack([offsets, label], axis=1)


def _checked(tars: Any, count: int) -> dict[str, tuple[int, int]]:  # noqa: ANN401 - whatever the file holds
    """The ranges of rows in a list of tars.

    Raises:
        ValueError: no such list.
    """
    found = {str(name): (int(first), int(last)) for name, (first, last) in tars.items()}
    if any(not 0 <= first <= last <= count for first, last in found.values()):
        raise ValueError("a range of rows that are not there")
    return found


def shown_tars(names: list[str]) -> str:
    """The first of some tars, for messages."""
    return ", ".join(re.sub(r"[^ -~]", "?", name)[:80] for name in names[:2]) or "none"
