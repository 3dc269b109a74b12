"""Changes of a gallery without building it again: rows appended, rows removed.

New rows are a segment of their own, removed ones a list of which rows count no more. A change counts from the moment
that gallery.json, replaced at once, names them: whoever opens the gallery, and whatever is killed, sees the state
before or the one after. What a killed change left is removed by the next. One process at a time changes a gallery.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_train.embed.gallery import DESCRIPTION, MADE_BY, PART_NAME, Gallery, source_folder, unit_parts
from dist_train.embed.segment import Segment, write_segment
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError
from dist_train.runtime.lock import HeldError, Lock
from dist_train.runtime.written import (
    MAKE_ROOM,
    remove_temporaries,
    sync_directory,
    write_failures,
    write_json,
    written,
)
from dist_train.section import first_difference

LOCK = "changes.lock"


def append_rows(directory: Path, files: Sequence[Path]) -> tuple[Gallery, int]:
    """Append embeddings to a gallery; once this returns, no crash takes them back.

    Segments that are not larger than what comes after them are written anew with it, so that N rows are never in more
    than about log2(N) segments.

    Args:
        directory: of the gallery.
        files: embeddings by the gallery's model.

    Returns:
        The gallery as it is now, and how many rows were appended.

    Raises:
        UserError: a fused gallery, embeddings of another model, that are there already, zero or not finite, or
            another process changes the gallery.
        WorkError: the disk is full, or a file is damaged.
    """
    if len({path.resolve() for path in files}) < len(files):
        raise UserError("an embeddings file is named twice; its pictures would be in the gallery twice")
    with changing(directory) as gallery, ExitStack() as closing:
        if gallery.parts:
            raise UserError(f"gallery {directory}: rows of a fused gallery are sums of several files; build it again")
        opened = []
        for path in files:
            opened.append(EmbeddingFile(path))
            closing.callback(opened[-1].close)
        count = sum(each.count for each in opened)
        if not count:
            raise UserError(f"gallery {directory}: no row in {', '.join(map(str, files)) or 'no file'}; nothing to add")
        sources = list(gallery.sources)
        numbers = []
        for each in opened:
            described = {key: each.description[key] for key in MADE_BY}
            if found := first_difference(gallery.made_by, described, cut_digests=True):
                raise UserError(
                    f"gallery {directory} and {each.path} were not made in the same way: {found}; embed all pictures "
                    "of a gallery with one model"
                )
            if each.description["source"] not in sources:
                sources.append(each.description["source"])
            numbers.append(sources.index(each.description["source"]))
            _refuse_known(gallery, each)
        added = list(gallery.body.get("added", ()))
        merged: list[Segment] = []
        while added and len(gallery.segments[len(added)]) <= count + sum(map(len, merged)):
            merged.insert(0, gallery.segments[len(added)])
            added.pop()
        shape = sum(map(len, merged)) + count, gallery.embedding_dim
        name = f"added-{_next_number(directory)}"
        with _removed_on_failure(directory / name):
            (directory / name).mkdir()
            parts = _all_parts(merged, unit_parts(opened, numbers))
            described = write_segment(directory / name, parts, shape, gallery.segments[0].kind)
            sync_directory(directory / name)
            _commit(gallery, {"sources": sources, "added": [*added, {"directory": name, **described}]})
    return Gallery(directory), count


def remove_rows(
    directory: Path, identities: Collection[str] = (), pictures: Collection[str] = ()
) -> tuple[Gallery, int]:
    """Remove pictures from a gallery: no search finds them any more. Their bytes leave the disk when it is built again.

    Args:
        directory: of the gallery.
        identities: names, all of whose pictures go.
        pictures: paths, as they are in their source, or with the source's before them.

    Returns:
        The gallery as it is now, and how many rows were removed.

    Raises:
        UserError: a name or a picture that is not there, nothing would be left, or another process changes the
            gallery. Nothing is removed then.
        WorkError: the disk is full.
    """
    if not identities and not pictures:
        raise UserError("nothing to remove; give names, or pictures by --picture")
    with changing(directory) as gallery:
        removed = gallery.removed.numpy().copy()
        missing = {("identity", each) for each in identities} | {("picture", each) for each in pictures}
        for start, batch in _batches(gallery):
            living = ~removed[start : start + batch.num_rows]
            masks = [(("identity", each), _equal(batch, "identity", each)) for each in identities]
            masks += [(("picture", each), _pictured(gallery, batch, each)) for each in pictures]
            for what, mask in masks:
                if (mask & living).any():
                    missing.discard(what)
                removed[start : start + batch.num_rows] |= mask
        if missing:
            kind, name = min(missing)
            more = f", and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise UserError(f"gallery {directory}: no {kind} {name!r}{more} there; nothing was removed")
        if removed.all():
            raise UserError(f"gallery {directory}: would be empty; remove the directory instead")
        name = f"removed-{_next_number(directory)}.npy"
        with _removed_on_failure(directory / name):
            with written(directory / name) as file:
                np.save(file, removed)
            _commit(gallery, {"removed": name})
        count = int(removed.sum()) - int(gallery.removed.sum())
    return Gallery(directory), count


@contextmanager
def changing(directory: Path) -> Iterator[Gallery]:
    """A gallery that this process alone may change inside the block.

    Raises:
        UserError: no gallery, or another process changes it.
        WorkError: the disk refuses.
    """
    Gallery(directory)  # no lock file where there is none
    with write_failures(f"gallery {directory}", MAKE_ROOM):
        try:
            lock = Lock(directory / LOCK)
        except HeldError as error:
            raise UserError(
                f"gallery {directory}: {error.holder or 'another process'} changes it now; run the command again after"
            ) from error
        with lock:
            gallery = Gallery(directory)
            _remove_unnamed(gallery)
            yield gallery


def _commit(gallery: Gallery, change: dict[str, Any]) -> None:
    """Make a change count. What it names is on the disk."""
    sync_directory(gallery.directory)
    write_json(gallery.directory / DESCRIPTION, gallery.body | change)
    sync_directory(gallery.directory)


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    """Where the block fails, what it wrote is removed, unless it counts."""
    try:
        yield
    except BaseException:
        _remove_unnamed(Gallery(path.parent))
        raise


def _remove_unnamed(gallery: Gallery) -> None:
    """Remove what no longer counts, or never did."""
    named = {each["directory"] for each in gallery.body.get("added", ())} | {gallery.body.get("removed")}
    for path in gallery.directory.iterdir():
        if not PART_NAME.fullmatch(path.name) or path.name in named:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for pattern in (f"{DESCRIPTION}.*", "removed-*"):  # what is enrolled meanwhile has another name
        remove_temporaries(gallery.directory, pattern)


def _next_number(directory: Path) -> int:
    """A number that no part has."""
    numbers = [
        path.name.removesuffix(".npy").partition("-")[2]
        for path in directory.iterdir()
        if PART_NAME.fullmatch(path.name)
    ]
    return 1 + max(map(int, numbers), default=0)


def _all_parts(
    segments: Sequence[Segment], new: Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Entries and unit rows of segments, then the new ones."""
    for segment in segments:
        for start, batch in segment.entries():
            yield batch, segment.exact[start : start + batch.num_rows].numpy()
    yield from new


def _batches(gallery: Gallery) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Number of the first row in the gallery, and entries, batch by batch.

    Raises:
        UserError: damaged.
    """
    first = 0
    try:
        for segment in gallery.segments:
            for start, batch in segment.entries():
                yield first + start, batch
            first += len(segment)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"gallery {gallery.directory}: entries.arrow is damaged: {error}; build it again") from error


def _equal(batch: pa.RecordBatch, column: str, value: str) -> NDArray[np.bool_]:
    """Which rows [n] have a value."""
    same = pc.fill_null(pc.equal(batch.column(column), value), fill_value=False)
    found: NDArray[np.bool_] = same.to_numpy(zero_copy_only=False)
    return found


def _pictured(gallery: Gallery, batch: pa.RecordBatch, picture: str) -> NDArray[np.bool_]:
    """Which rows [n] are of a picture, named as in its source or with the source before it."""
    found = _equal(batch, "path", picture)
    for number, source in enumerate(gallery.sources):
        root = source_folder(source)
        if Path(picture).is_relative_to(root):
            of_source = batch.column("source").to_numpy() == number
            # A source may spell its paths as no `Path` does: ./a.jpg in a table.
            for inside in {str(Path(picture).relative_to(root)), picture.removeprefix(os.path.join(root, ""))}:
                found |= _equal(batch, "path", inside) & of_source
    return found


def _refuse_known(gallery: Gallery, file: EmbeddingFile) -> None:
    """Refuse a file whose pictures are in the gallery: a command that was killed may have done its work.

    Raises:
        UserError: a picture is there.
    """
    home = file.description["source"]["path"]
    numbers = {number for number, source in enumerate(gallery.sources) if source["path"] == home}
    if not numbers:
        return
    names = pa.Table.from_batches(list(file.names()))
    paths = names.column("path").unique()
    new = set(zip(names.column("path").to_pylist(), names.column("offset").to_pylist(), strict=True))
    removed = gallery.removed.numpy()
    for start, batch in _batches(gallery):
        same = pc.is_in(batch.column("path"), value_set=paths).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(same & ~removed[start : start + batch.num_rows]).tolist():
            entry = batch.slice(row, 1).select(["path", "offset", "source"]).to_pylist()[0]
            if entry["source"] in numbers and (entry["path"], entry["offset"]) in new:
                raise UserError(
                    f"gallery {gallery.directory}: {entry['path']} of {file.path} is there already; remove it first, "
                    "or append pictures that are new"
                )
