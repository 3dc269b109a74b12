"""Sources whose photos lie inside large files: InsightFace `.rec`, and tar shards of raw photos."""

import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.recordio import Place, RecFile, Record, RecordError, image_range, indexed_places
from data_prep.sources import BATCH_ROWS, Raw, Reader, Reject, Row, Source, display, listing
from dist_train.data.index import read_index
from dist_train.errors import UserError

logger = logging.getLogger(__name__)

_PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
_IDENTITY_RECORD_BYTES = 40  # part header, header, two labels


class RecSource(Source):
    """An InsightFace `train.rec`, with `train.idx` beside it, or scanned where there is none.

    The identity is the label's number, known when a record is read. Damaged records are listed, and rejected on
    reading, by number and offset.
    """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Image records, in the order of the index, or of the file where it is scanned."""
        index_path = self.path.with_suffix(".idx")
        with RecFile(self.path) as rec:
            if index_path.exists():
                yield from _indexed(rec, index_path)
                return
            logger.info("%s has no %s beside it: scanning it", self.path, index_path.name)
            places = (place for place in rec.scan() if not _stands_for_identity(rec, place))
            while chunk := list(islice(places, BATCH_ROWS)):
                for place in chunk:
                    if place.damage:
                        logger.warning("%s: record %d: %s", self.path, place.number, place.damage)
                numbers, offsets, sizes, _ = zip(*chunk, strict=True)
                yield listing([b"%d" % number for number in numbers], offsets, sizes)

    def reader(self) -> Reader:
        """A reader of records."""
        return RecReader(self.path)

    def text(self, location: bytes) -> str:
        """`FILE#NUMBER`."""
        return f"{self.path.name}#{display(location)}"


class RecReader(Reader):
    """Reads records; the identity is the (first) label."""

    def __init__(self, path: Path) -> None:
        self._rec = RecFile(path)

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Picture and identity of each record."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> Raw | Reject:
        try:
            record = self._rec.read(int(row.location), row.offset, row.size)
        except RecordError as error:
            return Reject("damaged record", str(error))
        label = record.labels[0]
        if not record.data:
            return Reject("no picture", f"record {int(row.location)} at offset {row.offset} holds only labels")
        if not (label >= 0 and label.is_integer()):
            return Reject("bad label", f"record {int(row.location)} at offset {row.offset}: label {label}")
        return Raw(record.data, str(int(label)))

    def close(self) -> None:
        """Close the file."""
        self._rec.close()


class TarSource(Source):
    """Tar shards of raw photos: `path` is one tar, or a folder of them.

    The identity is the text of the sample's `.cls` where there is one, else the folder the photo lies in. A `.idx`
    beside a tar (wds2idx) spares reading through the tar.
    """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All photos, tar by tar in the order of their names, in the order of the tar."""
        photos = (photo for name in self._names() for photo in _photos(self._folder, name))
        while chunk := list(islice(photos, BATCH_ROWS)):
            locations, offsets, sizes, identities = zip(*chunk, strict=True)
            yield listing(locations, offsets, sizes, identities)

    def reader(self) -> Reader:
        """A reader of members."""
        return TarReader(self._folder)

    def text(self, location: bytes) -> str:
        """`TAR:MEMBER`."""
        tar, _, member = location.partition(b"\0")
        return f"{display(tar)}:{display(member)}"

    @property
    def _folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _names(self) -> list[str]:
        names = sorted(p.name for p in self.path.glob("*.tar")) if self.path.is_dir() else [self.path.name]
        if not names:
            raise UserError(f"{self.path}: no .tar in it")
        return names


class TarReader(Reader):
    """Reads members of tars at their offsets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[bytes, int] = {}

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Content and identity of each member."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> Raw | Reject:
        if not row.identity:
            return Reject("no identity", "neither a .cls beside it nor a folder around it")
        tar = row.location.partition(b"\0")[0]
        try:
            fd = self._descriptor(tar)
        except FileNotFoundError:
            return Reject("vanished", "its tar was listed at planning and is not there any more")
        data = os.pread(fd, row.size, row.offset)
        if len(data) < row.size:
            return Reject("truncated", f"the tar ends {row.size - len(data)} bytes before the photo does")
        return Raw(data, row.identity)

    def _descriptor(self, tar: bytes) -> int:
        if tar not in self._open:
            if len(self._open) >= 64:  # the rows of a unit come from all tars; descriptors are few
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(os.path.join(os.fsencode(self._folder), tar), os.O_RDONLY | os.O_CLOEXEC)
        return self._open[tar]

    def close(self) -> None:
        """Close all tars."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


class _Photo(NamedTuple):
    location: bytes
    offset: int
    size: int
    identity: str | None


def _indexed(rec: RecFile, index_path: Path) -> Iterator[pa.RecordBatch]:
    numbers, offsets, sizes = indexed_places(rec, index_path)
    if not len(numbers):
        raise UserError(f"{index_path}: no lines; move it away to have {rec.path.name} scanned")
    beyond = int((offsets >= rec.size).sum())
    if beyond:
        logger.warning(
            "%s ends at byte %d: %d records of its index lie beyond and are lost", rec.path, rec.size, beyond
        )
    by_number = np.argsort(numbers, kind="stable")
    ordered = numbers[by_number]

    def record(number: int) -> Record | None:
        at = int(np.searchsorted(ordered, number))
        if at == len(ordered) or ordered[at] != number:
            return None
        row = by_number[at]
        try:
            return rec.read(number, int(offsets[row]), int(sizes[row]))
        except RecordError as error:
            logger.warning("%s: %s", rec.path, error)
            return None

    first = record(0)
    images = image_range(first) if first else None
    if images is not None:
        start, stop = images.start, images.stop
        # Labels are float32: above 2**24 the number of the first identity record is rounded.
        while (found := record(stop)) and found.data:
            stop += 1
        while stop > start and (found := record(stop - 1)) and not found.data:
            stop -= 1
        chosen = (numbers >= start) & (numbers < stop)
        numbers, offsets, sizes = numbers[chosen], offsets[chosen], sizes[chosen]
    for at in range(0, len(numbers), BATCH_ROWS):
        part = slice(at, at + BATCH_ROWS)
        locations = [b"%d" % number for number in numbers[part].tolist()]
        yield listing(locations, pa.array(offsets[part]), pa.array(sizes[part]))


def _stands_for_identity(rec: RecFile, place: Place) -> bool:
    """Whether a record has two labels and no picture, as record 0 and the identities' records have."""
    if place.damage or place.size > _IDENTITY_RECORD_BYTES:
        return False
    try:
        record = rec.read(place.number, place.offset, place.size)
    except RecordError:
        return False
    return len(record.labels) == 2 and not record.data


def _photos(folder: Path, name: str) -> Iterator[_Photo]:
    """Photos of one tar."""
    path = folder / name
    group: list[tuple[str, int, int]] = []
    try:
        with path.open("rb") as file:
            for member in _members(path):
                if group and _key(group[0][0]) != _key(member[0]):
                    yield from _sample(file.fileno(), name, group)
                    group = []
                group.append(member)
            yield from _sample(file.fileno(), name, group)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files in a tar."""
    index_path = path.with_suffix(".idx")
    if index_path.exists() and index_path.stat().st_mtime >= path.stat().st_mtime:
        for members in read_index(index_path):
            yield from ((member.name, member.offset, member.size) for member in members)
        return
    with (
        path.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", ignore_zeros=True, errors="surrogateescape") as tar,
    ):
        end = 0  # of the last member, with its padding
        while (info := _next(tar, path)) is not None:
            _check_gap(path, file.fileno(), end, info.offset)
            if info.isreg():
                yield info.name, info.offset_data, info.size
            end = tar.offset
            vars(tar)["members"].clear()  # tarfile would keep all; a shard may hold millions
        _check_gap(path, file.fileno(), end, os.fstat(file.fileno()).st_size)


def _next(tar: tarfile.TarFile, path: Path) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except tarfile.ReadError as error:
        logger.warning("%s ends inside a member (%s): it is cut off, photos after that are lost", path, error)
        return None


def _check_gap(path: Path, fd: int, start: int, stop: int) -> None:
    """Say what lies between two members, other than the zeros between joined tars and at the end."""
    if stop <= start or not any(os.pread(fd, tarfile.BLOCKSIZE, start)):
        return
    if start == 0:
        raise UserError(f"{path}: bytes 0 to {stop} are no tar; expected an uncompressed tar of photos")
    logger.warning("%s: bytes %d to %d are damaged: photos in there are not listed", path, start, stop)


def _sample(fd: int, tar: str, group: list[tuple[str, int, int]]) -> Iterator[_Photo]:
    """Photos among the members of one sample, with the sample's identity."""
    classes = [member for member in group if member[0].endswith(".cls")]
    label = display(os.pread(fd, min(classes[0][2], 4096), classes[0][1])).strip() if classes else ""
    for name, offset, size in group:
        if name.rpartition(".")[2].lower() not in _PICTURES:
            continue
        raw_name = os.fsencode(name)
        folder = display(os.fsencode(PurePosixPath(name).parent.name))
        yield _Photo(os.fsencode(tar) + b"\0" + raw_name, offset, size, label or folder or None)


def _key(name: str) -> str:
    """Name of a sample: WebDataset cuts at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"
