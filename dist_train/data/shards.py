"""Reading samples out of tar shards by offset: one index look-up and one `pread` per member."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from dist_train.data.index import HEADER_BYTES, INDEX_VERSION, Member, parse_members
from dist_train.data.manifest import MAX_CLASSES, Shard
from dist_train.data.tar_samples import key_of, parts_of, same_key
from dist_train.runtime.text import shown_name

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
UNLABELLED = -1  # in place of a label that is not read
_MOST_BYTES = 256 << 20  # of a sample; a damaged index may claim anything


class BadSampleError(Exception):
    """One sample cannot be used; the message is the reason."""


class RawSample(NamedTuple):
    """A sample as stored.

    Attributes:
        key: name of its members without extension.
        image: the encoded picture.
        label: class number; -1 where none was asked for.
        record: the parsed `.json`, if it was asked for and is there.
        set_px: side of the pictures of its set in pixels; 0 where no set is known.
        source: number of its set among the sets that are read together.
        further: the labels that it has beside `label`.
    """

    key: str
    image: NDArray[np.uint8]
    label: int
    record: dict[str, Any] | None
    set_px: int = 0
    source: int = 0
    further: tuple[int, ...] = ()


class OpenShard:
    """One tar and its index.

    The index stays text and is parsed line by line on use: with many workers and ranks each needs only few of a
    shard's samples, and parsing all of it in each of them would cost more than decoding.
    """

    def __init__(self, path: Path, index_path: Path, shard: Shard) -> None:
        self.path = path
        self._index_path = index_path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSampleError(f"shard {path}: {error.strerror}") from error
        try:
            self._check_and_index(shard)
        except BaseException:
            os.close(self._fd)
            raise

    def _check_and_index(self, shard: Shard) -> None:
        index_path = self._index_path
        self._size = os.fstat(self._fd).st_size
        if self._size != shard.bytes:
            raise BadSampleError(f"shard {self.path}: {self._size} bytes, the manifest says {shard.bytes}")
        try:
            self._text = index_path.read_bytes()
        except OSError as error:
            raise BadSampleError(f"shard index {index_path}: {error.strerror}") from error
        newlines = np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == ord("\n"))
        head = self._text[: newlines[0]].decode(errors="replace").split() if len(newlines) else []
        if len(head) != 2 or head[0] != INDEX_VERSION or head[1] != str(len(newlines) - 1):
            raise BadSampleError(
                f"shard index {index_path}: head {head} over {max(len(newlines) - 1, 0)} lines; it is cut off"
            )
        if len(newlines) - 1 != shard.samples:
            raise BadSampleError(
                f"shard index {index_path}: {len(newlines) - 1} samples, the manifest says {shard.samples}"
            )
        self._ends = newlines.astype(np.int32 if len(self._text) < 2**31 else np.int64)

    def members(self, sample: int) -> list[Member]:
        """Members of a sample, as indexed."""
        line = self._text[self._ends[sample] + 1 : self._ends[sample + 1]]
        try:
            return parse_members(line, self._size)
        except ValueError as error:
            raise BadSampleError(f"shard index {self._index_path}, line {sample + 2}: {error}") from error

    def key(self, sample: int) -> str:
        """Name of a sample for messages, even when the sample is unreadable."""
        try:
            return _key(self.members(sample)[0].name)
        except BadSampleError:
            return f"#{sample}"

    def read(self, sample: int, label_key: str | None, with_record: bool = False) -> RawSample:
        """Read one sample; without a `label_key` its label is not looked for.

        Raises:
            BadSampleError: no picture or label in it, or its bytes are not where the index says.
        """
        parts = parts_of(self.members(sample))
        if parts.clash:
            raise BadSampleError(same_key(*parts.clash))
        if not parts.pictures:
            raise BadSampleError("no .jpg, .jpeg, .png or .webp in it")
        image, label, record = parts.pictures[0], parts.beside.get("cls"), parts.beside.get("json")
        if image.extension.rpartition(".")[2] not in IMAGE_EXTENSIONS:
            raise BadSampleError(f"{shown_name(image.name)}: not taken here, only .jpg, .jpeg, .png and .webp")
        if image.size == 0:
            raise BadSampleError(f"{shown_name(image.name)} is empty")
        if label_key is None:
            label = None
        elif label is None and record is None:
            raise BadSampleError("no label: neither .cls nor .json in it")
        if (label is not None or label_key is None) and not with_record:
            record = None  # it is not worth parsing
        wanted = [member for member in (image, label, record) if member is not None]
        start = min(member.offset for member in wanted) - HEADER_BYTES
        stop = max(member.offset + member.size for member in wanted)
        if stop - start > _MOST_BYTES:
            raise BadSampleError(f"its files span {stop - start:,} bytes, at most {_MOST_BYTES:,} are read")
        # A sample's members lie side by side: one system call for all.
        try:
            data = os.pread(self._fd, stop - start, start)
        except OSError as error:
            raise BadSampleError(f"{shown_name(image.name)}: cannot be read: {error.strerror}") from error
        for member in wanted:
            _check_member(data, start, member)
        body = None if record is None else _parse_record(data, start, record)
        number = UNLABELLED
        if label_key is not None:
            number = _label_in(body, label_key) if label is None else _parse_label(data, start, label)
        if number >= MAX_CLASSES:
            raise BadSampleError(f"label {number} is out of all range, the largest is {MAX_CLASSES - 1}")
        pixels = np.frombuffer(data, dtype=np.uint8, count=image.size, offset=image.offset - start)
        return RawSample(_key(image.name), pixels, number, body)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _key(name: str) -> str:
    return shown_name(key_of(name).rpartition("/")[2])


def _check_member(data: bytes, start: int, member: Member) -> None:
    """Whether the tar's header names the member; else the tar has changed since it was indexed."""
    place = member.offset - start
    if len(data) < place + member.size:
        raise BadSampleError(
            f"{shown_name(member.name)}: the tar ends before its {member.size} bytes at {member.offset}"
        )
    name = member.name.encode("utf-8", "surrogateescape")
    header = data[place - HEADER_BYTES : place]
    if len(name) < 100 and header.startswith(name + b"\0"):
        return
    if not _agrees(header, name, member.size):
        raise BadSampleError(
            f"{shown_name(member.name)}: not at offset {member.offset}; the shard changed since indexing"
        )


def _agrees(header: bytes, name: bytes, size: int) -> bool:
    """Whether a header may be that of a file whose name is not in it as it is.

    A long name, and with some writers one beyond ASCII, is in a header of its own; a part of it may be in a field for
    folders; an index by others has a name with % as it is.
    """
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    found = info.name.encode("utf-8", "surrogateescape")
    if name.isascii() and len(name) < 100:
        return name in (found, unquote_to_bytes(found))
    return info.isreg() and info.size == size


def _parse_label(data: bytes, start: int, member: Member) -> int:
    text = data[member.offset - start : member.offset - start + member.size].strip()
    if not text.isdigit() or len(text) > 18:
        raise BadSampleError(f"label {text[:40]!r} in {shown_name(member.name)} is not a class number")
    return int(text)


def _parse_record(data: bytes, start: int, member: Member) -> dict[str, Any]:
    try:
        body = json.loads(data[member.offset - start : member.offset - start + member.size])
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"{shown_name(member.name)}: not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadSampleError(f"{shown_name(member.name)}: {type(body).__name__}, expected a JSON object")
    return body


def _label_in(body: dict[str, Any] | None, key: str) -> int:
    label = (body or {}).get(key)
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise BadSampleError(f"no label: its .json has {key!r} = {str(label)[:40]!r}, expected a class number")
    return label
