"""Reading samples out of tar shards by offset: one index look-up and one `pread` per member."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.data.index import INDEX_VERSION, Member, parse_members
from dist_train.data.manifest import Shard

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
_HEADER = 512  # bytes of a tar header; a member's data follow its header at once


class BadSampleError(Exception):
    """One sample cannot be used; the message is the reason."""


class RawSample(NamedTuple):
    """A sample as stored.

    Attributes:
        key: name of its members without extension.
        image: the encoded picture.
        label: class number.
        record: the parsed `.json`, if it was asked for and is there.
    """

    key: str
    image: NDArray[np.uint8]
    label: int
    record: dict[str, Any] | None


class OpenShard:
    """One tar and its index.

    The index stays text and is parsed line by line on use: with many workers and ranks each needs only few of a
    shard's samples, and parsing all of it in each of them would cost more than decoding.
    """

    def __init__(self, path: Path, index_path: Path, shard: Shard) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSampleError(f"shard {path}: {error.strerror}") from error
        try:
            self._check_and_index(index_path, shard)
        except BaseException:
            os.close(self._fd)
            raise

    def _check_and_index(self, index_path: Path, shard: Shard) -> None:
        size = os.fstat(self._fd).st_size
        if size != shard.bytes:
            raise BadSampleError(f"shard {self.path}: {size} bytes, the manifest says {shard.bytes}")
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
        line = self._text[self._ends[sample] + 1 : self._ends[sample + 1]].decode(errors="replace")
        try:
            return parse_members(line)
        except ValueError as error:
            raise BadSampleError(f"shard {self.path}: index line {sample + 2}: {error}") from error

    def key(self, sample: int) -> str:
        """Name of a sample for messages, even when the sample is unreadable."""
        try:
            return _key(self.members(sample)[0].name)
        except BadSampleError:
            return f"#{sample}"

    def read(self, sample: int, label_key: str, with_record: bool = False) -> RawSample:
        """Read one sample.

        Raises:
            BadSampleError: no picture or label in it, or its bytes are not where the index says.
        """
        image = label = record = None
        for member in self.members(sample):
            if member.extension in IMAGE_EXTENSIONS:
                image = member
            elif member.extension == "cls":
                label = member
            elif member.extension == "json":
                record = member
        if image is None:
            raise BadSampleError("no .jpg, .jpeg, .png or .webp in it")
        if image.size == 0:
            raise BadSampleError(f"{image.name} is empty")
        if label is None and record is None:
            raise BadSampleError("no label: neither .cls nor .json in it")
        if label is not None and not with_record:
            record = None  # it is not worth parsing
        wanted = [member for member in (image, label, record) if member is not None]
        start = min(member.offset for member in wanted) - _HEADER
        stop = max(member.offset + member.size for member in wanted)
        # A sample's members lie side by side: one system call for all.
        data = os.pread(self._fd, stop - start, start)
        for member in wanted:
            _check_member(data, start, member)
        body = None if record is None else _parse_record(data, start, record)
        number = _label_in(body, label_key) if label is None else _parse_label(data, start, label)
        pixels = np.frombuffer(data, dtype=np.uint8, count=image.size, offset=image.offset - start)
        return RawSample(_key(image.name), pixels, number, body)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _key(name: str) -> str:
    # WebDataset's rule: the extension starts at the first dot of the last part.
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


def _check_member(data: bytes, start: int, member: Member) -> None:
    place = member.offset - start
    if len(data) < place + member.size:
        raise BadSampleError(f"{member.name}: the tar ends before its {member.size} bytes at {member.offset}")
    # The header before the data names the member, or the tar has changed since it was indexed. Names of 100 bytes and
    # more are in a header of their own.
    expected = member.name.encode()
    header = place - _HEADER
    if len(expected) < 100 and data[header : header + len(expected) + 1] != expected + b"\0":
        raise BadSampleError(f"{member.name}: not at offset {member.offset}; the shard changed since indexing")


def _parse_label(data: bytes, start: int, member: Member) -> int:
    text = data[member.offset - start : member.offset - start + member.size].strip()
    if not text.isdigit() or len(text) > 18:
        raise BadSampleError(f"label {text[:40]!r} in {member.name} is not a class number")
    return int(text)


def _parse_record(data: bytes, start: int, member: Member) -> dict[str, Any]:
    try:
        body = json.loads(data[member.offset - start : member.offset - start + member.size])
    except ValueError as error:
        raise BadSampleError(f"{member.name}: not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadSampleError(f"{member.name}: {type(body).__name__}, expected a JSON object")
    return body


def _label_in(body: dict[str, Any] | None, key: str) -> int:
    label = (body or {}).get(key)
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise BadSampleError(f"no label: its .json has {key!r} = {label!r}, expected a class number")
    return label
