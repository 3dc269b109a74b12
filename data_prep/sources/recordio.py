"""InsightFace training sets: RecordIO (`train.rec`), its index (`train.idx`), without MXNet.

A record is a little-endian magic number, a word with a 3-bit continuation flag and a 29-bit length, the payload, and
zeros up to a multiple of 4. A payload that holds the magic number at a multiple of 4 is split there into several parts
(first, middle, last) and the number is left out between them (dmlc-core, `recordio.h`). The payload starts with the
header `IRHeader` of `mxnet.recordio`: flag, label, two ids; if flag > 0, as many float32 labels follow.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dist_train.errors import UserError
from dist_train.runtime.text import first_line

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")  # magic, continuation flag and length
_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MAX_LABELS = 1 << 16  # a larger flag is damage
_MOST_RECORDS = 1 << 63  # an index holds numbers below it
_MOST_AT_ONCE = 1 << 20  # bytes of the first read: an index that lacks lines makes records look larger than they are


class RecordError(ValueError):
    """The error of a record that cannot be read; the message has its number, its offset and what was found."""


class Record(NamedTuple):
    """A record of an InsightFace set.

    Attributes:
        labels: the scalar label, or the `flag` labels that replace it.
        data: the encoded picture; empty in a record of an identity.
    """

    labels: tuple[float, ...]
    data: bytes


class RecordPlace(NamedTuple):
    """The place of a record: number, byte offset and length, with part headers and padding.

    Attributes:
        number: the index in `train.idx`, or the count of records before it where there is none.
        damage: description of the damage; empty if none is known.
    """

    number: int
    offset: int
    size: int
    damage: str


class RecFile:
    """A `.rec` opened for reading at offsets. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            UserError: it cannot be opened or is empty.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; expected the .rec of an InsightFace set") from error
        self.size = os.fstat(self._fd).st_size
        if self.size == 0:
            os.close(self._fd)
            raise UserError(f"{path}: 0 bytes; copy the set again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self, number: int, offset: int, size: int) -> Record:
        """The record at `offset`.

        Args:
            number: number of the record, for messages.
            offset: byte offset of its start.
            size: bytes to read at once, at most 1 MiB; a hint, the record may be shorter or longer.

        Raises:
            RecordError: there is no whole record at `offset`.
        """
        try:
            return parse_record(self._payload(offset, size))
        except RecordError as error:
            raise RecordError(f"record {number} at offset {offset}: {error}") from error

    def _payload(self, offset: int, size: int) -> bytes:
        if not 0 <= offset < self.size:
            raise RecordError(f"the file has {self.size} bytes")
        buffer = os.pread(self._fd, min(max(size, _PART.size), _MOST_AT_ONCE), offset)
        flag, length = self._part(buffer, offset)
        if len(buffer) < _PART.size + length:
            buffer = self._whole(offset, length)
        payload = buffer[_PART.size : _PART.size + length]
        if flag == _WHOLE:
            return payload
        if flag != _FIRST:
            raise RecordError(f"continuation flag {flag} where a record should start")
        parts = [payload]
        while flag != _LAST:
            offset += _PART.size + _padded(length)
            flag, length = self._part(os.pread(self._fd, _PART.size, offset), offset)
            if flag not in (_MIDDLE, _LAST):
                raise RecordError(f"continuation flag {flag} at offset {offset}, inside a split record")
            parts.append(self._whole(offset, length)[_PART.size :])
        return _MAGIC_BYTES.join(parts)

    def _part(self, buffer: bytes, offset: int) -> tuple[int, int]:
        if len(buffer) < _PART.size:
            raise RecordError(f"the file ends at {self.size}, before the part header at {offset}")
        magic, word = _PART.unpack_from(buffer)
        if magic != MAGIC:
            raise RecordError(f"found {magic:#010x} at offset {offset}, expected the magic number {MAGIC:#010x}")
        return word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)

    def _whole(self, offset: int, length: int) -> bytes:
        if offset + _PART.size + length > self.size:
            raise RecordError(
                f"it needs {length} bytes and the file ends {self.size - offset - _PART.size} on: cut off"
            )
        return os.pread(self._fd, _PART.size + length, offset)

    def scan(self) -> Iterator[RecordPlace]:
        """Places of all records, in the order of the file, by walking over the part headers.

        A damaged stretch, up to the next magic number that starts a record, is one place with `damage` set.
        """
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as view:
            number = offset = 0
            while offset < self.size:
                end, damage = _walk(view, offset, self.size)
                yield RecordPlace(number, offset, end - offset, damage)
                number += 1
                offset = end

    def more_behind(self, offsets: np.ndarray) -> int | None:
        """Where a record begins behind the last one of `offsets`; None where none does, or damage hides it."""
        inside = offsets[(offsets >= 0) & (offsets < self.size)]
        if not len(inside):
            return None
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as view:
            end, damage = _walk(view, int(inside.max()), self.size)
            return end if not damage and view[end : end + len(_MAGIC_BYTES)] == _MAGIC_BYTES else None


def parse_record(payload: bytes) -> Record:
    """Labels and picture of a payload.

    Raises:
        RecordError: it is too short for its header or for its labels.
    """
    if len(payload) < _HEADER.size:
        raise RecordError(f"a payload of {len(payload)} bytes, expected at least the header's {_HEADER.size}")
    flag, label, _, _ = _HEADER.unpack_from(payload)
    if flag == 0:
        return Record((label,), payload[_HEADER.size :])
    end = _HEADER.size + 4 * flag
    if flag > _MAX_LABELS or len(payload) < end:
        raise RecordError(f"flag {flag}: as many labels do not fit in a payload of {len(payload)} bytes")
    return Record(struct.unpack_from(f"<{flag}f", payload, _HEADER.size), payload[end:])


def read_rec_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and offsets (int64) in a `train.idx`, in its order; offsets need not ascend.

    Raises:
        UserError: the file is unreadable, or a line is not `index<TAB>offset`.
    """
    from pyarrow import ArrowInvalid, csv, int64

    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=["number", "offset"]),
            parse_options=csv.ParseOptions(delimiter="\t"),
            convert_options=csv.ConvertOptions(column_types={"number": int64(), "offset": int64()}),
        )
        if missing := max(table[name].null_count for name in table.column_names):
            raise UserError(f"{path}: {missing} lines without a number; move the file away to have the .rec scanned")
        return table["number"].to_numpy(), table["offset"].to_numpy()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except ArrowInvalid as error:
        reason = first_line(error)
        raise UserError(
            f"{path}: expected lines of index<TAB>offset: {reason}; move the file away to have the .rec scanned"
        ) from error


def indexed_places(rec: RecFile, index_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, offsets and sizes (int64) of the records in a `train.idx`, in its order.

    A size reaches to the next offset or to the end of the file: never less than the record, so that one read suffices
    for all but large ones.
    """
    numbers, offsets = read_rec_index(index_path)
    ordered = np.unique(offsets)
    following = np.append(ordered[1:], max(rec.size, int(ordered[-1]) if len(ordered) else 0))
    sizes = (following - ordered)[np.searchsorted(ordered, offsets)]
    return numbers, offsets, sizes


def image_range(first: Record) -> range | None:
    """Numbers of the image records according to record 0; None where record 0 is an image.

    Record 0 of most sets has two labels (a, b) and no picture: images are records 1 .. a-1, records a .. b-1 stand for
    identities.

    Raises:
        RecordError: record 0 has such labels, and a is no number of a record.
    """
    if len(first.labels) != 2 or first.data:
        return None
    stop = first.labels[0]
    if not (1 <= stop < _MOST_RECORDS and stop.is_integer()):  # nan and infinity, too
        raise RecordError(f"record 0: images end before record {stop:g}, expected a whole number from 1 on")
    return range(1, int(stop))


def _padded(length: int) -> int:
    return length + -length % 4


def _walk(view: mmap.mmap, start: int, size: int) -> tuple[int, str]:
    """End of the record at `start`, and a description of its damage."""
    offset = start
    while True:
        if offset + _PART.size > size:
            return size, f"the file ends at {size}, before the part header at {offset}"
        magic, word = _PART.unpack_from(view, offset)
        flag, length = word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)
        if magic != MAGIC or (flag not in (_WHOLE, _FIRST) if offset == start else flag not in (_MIDDLE, _LAST)):
            what = f"found {magic:#010x}" if magic != MAGIC else f"found continuation flag {flag}"
            return _next_start(view, offset + 4 if offset == start else offset, size), f"{what} at offset {offset}"
        if offset + _PART.size + length > size:
            # A length that was overwritten must not swallow the records after it.
            end = _next_start(view, offset + _PART.size, size)
            return end, f"{length} bytes announced at offset {offset}, the file ends at {size}"
        offset += _PART.size + _padded(length)
        if flag in (_WHOLE, _LAST):
            return min(offset, size), ""


def _next_start(view: mmap.mmap, offset: int, size: int) -> int:
    """Offset of the next magic number, at a multiple of 4, whose word starts a record that fits in the file."""
    while (offset := view.find(_MAGIC_BYTES, offset)) >= 0 and offset + _PART.size <= size:
        flag, length = divmod(_PART.unpack_from(view, offset)[1], 1 << _LENGTH_BITS)
        if offset % 4 == 0 and flag in (_WHOLE, _FIRST) and offset + _PART.size + length <= size:
            return offset
        offset += 1
    return size
