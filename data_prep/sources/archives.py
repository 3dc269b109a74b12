"""Sources whose photos lie inside large files: InsightFace `.rec`, and tar shards of raw photos."""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from data_prep.sources.base import BATCH_ROWS, MAX_FILE_BYTES, Raw, Reader, Row, Source, display, listing
from data_prep.sources.recordio import RecFile, Record, RecordError, RecordPlace, image_range, indexed_places
from dist_train.data.reject import Reject
from dist_train.data.tar_folder import refuse_other_inputs, tars_in
from dist_train.data.tar_samples import read_photos
from dist_train.data.tars import LeftOut
from dist_train.errors import UserError
from dist_train.runtime.distinct import distinct

logger = logging.getLogger(__name__)

_LABEL_BYTES = 4096  # bytes of a .cls that are read
_IDENTITY_RECORD_BYTES = 40  # part header, header, two labels


class RecSource(Source):
    """A source in InsightFace's form: `train.rec` with `train.idx` beside it, or without, when the file is scanned.

    The identity is the label's number, known when a record is read. Damaged records are listed, and rejected with
    number and offset when they are read; an index that lacks records is refused.
    """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Image records, in the order of the index, or of the file where there is no index."""
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
    """A reader of records; the identity is the first label."""

    nameless = "it has no label"

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
    """A source of tar shards with raw photos: `path` is one tar, or a folder of tars.

    The identity is the text of the photo's `.cls` if there is one, else the name of the photo's folder. With a `.idx`
    beside a tar the tar is not read through. Other members of a tar (links, files cut off, damaged bytes) are listed,
    and rejected when they are read.
    """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All photos: tars in the order of their names, photos in the order of the tar."""
        if self.path.is_dir():
            refuse_other_inputs(self.path, photos=True)
        photos = (photo for name in self._names() for photo in _photos(self._folder, name))
        while chunk := list(islice(photos, BATCH_ROWS)):
            locations, offsets, sizes, identities = zip(*chunk, strict=True)
            yield listing(locations, offsets, sizes, identities)

    def reader(self) -> Reader:
        """A reader of members."""
        return TarReader(self._folder)

    def text(self, location: bytes) -> str:
        """`TAR:MEMBER`."""
        tar, member, *_ = location.split(b"\0")
        return f"{display(tar)}:{display(member)}"

    @property
    def _folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _names(self) -> list[str]:
        names = [path.name for path in tars_in(self.path)] if self.path.is_dir() else [self.path.name]
        if not names:
            raise UserError(f"{self.path}: no .tar in it")
        return names


class TarReader(Reader):
    """A reader of members of tars at their offsets."""

    nameless = "neither a .cls beside it nor a folder around it"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[bytes, int] = {}

    def read(self, rows: Sequence[Row]) -> list[Raw | Reject]:
        """Content and identity of each member."""
        return [self._read(row) for row in rows]

    def root(self, row: Row) -> bytes:
        """The folder of the tars."""
        return os.fsencode(self._folder)

    def _read(self, row: Row) -> Raw | Reject:
        tar, _, *rejected = row.location.split(b"\0")
        if rejected:
            return Reject(*(display(word) for word in rejected))
        if row.size > MAX_FILE_BYTES:
            return Reject("too large", f"{row.size} bytes, the most is {MAX_FILE_BYTES}")
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
            if len(self._open) >= 64:  # the rows of a unit come from all tars, more than a process may have open
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(os.path.join(os.fsencode(self._folder), tar), os.O_RDONLY | os.O_CLOEXEC)
        return self._open[tar]

    def close(self) -> None:
        """Close all tars."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


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
    try:
        images = image_range(first) if first else None
    except RecordError as error:
        raise UserError(f"{rec.path}: {error}; move {index_path.name} away to have {rec.path.name} scanned") from error
    if images is not None:
        start, stop = images.start, images.stop
        # Labels are float32: above 2**24 the number of the first identity record is rounded.
        while (found := record(stop)) and found.data:
            stop += 1
        while stop > start and (found := record(stop - 1)) and not found.data:
            stop -= 1
        chosen = (numbers >= start) & (numbers < stop)
        numbers, offsets, sizes = numbers[chosen], offsets[chosen], sizes[chosen]
        if (missing := stop - start - len(distinct(numbers))) > 0:
            raise UserError(
                f"{index_path}: {missing:,} of {stop - start:,} image records are not in it; move it away to have "
                f"{rec.path.name} scanned"
            )
    elif (end := rec.more_behind(offsets)) is not None:
        raise UserError(
            f"{index_path}: records behind byte {end} of {rec.path.name} are not in it: it is cut off; move it away to "
            f"have {rec.path.name} scanned"
        )
    for at in range(0, len(numbers), BATCH_ROWS):
        part = slice(at, at + BATCH_ROWS)
        locations = [b"%d" % number for number in numbers[part].tolist()]
        yield listing(locations, pa.array(offsets[part]), pa.array(sizes[part]))


def _stands_for_identity(rec: RecFile, place: RecordPlace) -> bool:
    """Whether a record has two labels and no picture, like record 0 and the records of identities."""
    if place.damage or place.size > _IDENTITY_RECORD_BYTES:
        return False
    try:
        record = rec.read(place.number, place.offset, place.size)
    except RecordError:
        return False
    return len(record.labels) == 2 and not record.data


def _photos(folder: Path, name: str) -> Iterator[tuple[bytes, int, int, str | None]]:
    """Location, offset, size and identity of the photos of one tar; other members have the reason in the location."""
    path = folder / name
    tar = os.fsencode(name)
    try:
        with path.open("rb", buffering=0) as file:
            for found in read_photos(path, ("cls",)):
                if isinstance(found, LeftOut):
                    words = (tar, *(_packed(word) for word in found))
                    yield b"\0".join(words), 0, 0, None
                    continue
                picture, label = found.picture, found.beside.get("cls")
                text = b"" if label is None else os.pread(file.fileno(), min(label.size, _LABEL_BYTES), label.offset)
                around = PurePosixPath(picture.name).parent.name.encode("utf-8", "surrogateescape")
                location = tar + b"\0" + _packed(picture.name)
                yield location, picture.offset, picture.size, display(text).strip() or display(around) or None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _packed(name: str) -> bytes:
    """A name as bytes, its zero bytes escaped, because they separate the parts of a location."""
    return name.encode("utf-8", "surrogateescape").replace(b"\0", b"\\0")
