"""The writer of shards: deterministic bytes, an index beside each tar, no half-written file under a final name."""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.data.aligner import Aligner
from dist_train.data.index import Member, format_index
from dist_train.data.manifest import IDENTITIES_NAME, Manifest, Shard
from dist_train.runtime.written import write_failures, write_text, written

# A member's header as tarfile makes it, without name and size. Only name, size and checksum differ between members, and
# tarfile would spend more time on the header than a small picture costs in all.
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 156)  # POSIX.1-1988, ustar
_HEADER_SUM = sum(_HEADER) - sum(_HEADER[_CHECKSUM]) - sum(_HEADER[_SIZE]) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """Header of a tar's member in ustar format; all fields but name and size have tarfile's constants."""
    encoded, digits = name.encode("utf-8", "surrogateescape"), b"%011o" % size
    if len(encoded) > _NAME.stop or len(digits) > 11:
        raise ValueError(f"member {name}, {size} bytes: names have at most 100 bytes, members less than 8 GiB")
    header = bytearray(_HEADER)
    header[: len(encoded)] = encoded
    header[_SIZE] = digits
    header[_CHECKSUM] = b"%06o\0 " % (_HEADER_SUM + sum(encoded) + sum(digits))
    return bytes(header)


def _any_header(name: str, size: int) -> bytes:
    """As `tar_header`; a name that does not fit goes before it in a header of its own, in GNU's form."""
    if len(name.encode("utf-8", "surrogateescape")) <= _NAME.stop:
        return tar_header(name, size)
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class _HashingFile:
    """A file that is written forwards only, with the count and SHA-256 of the written bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)


class ShardWriter:
    """The writer of one shard, a context manager: tar and index appear by rename, after an exception no tar does.

    The same samples give the same bytes: times, owners and modes in the tar are constants.

    Args:
        path: the tar's final name; the index gets the same name with `.idx`.

    Raises:
        WorkError: the disk is full or the directory cannot be written.
    """

    _file: _HashingFile

    def __init__(self, path: Path) -> None:
        self._path = path
        self._samples: list[list[Member]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(write_failures(f"shard {self._path}"))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _HashingFile(stack.enter_context(written(self._path)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            end = self._file.bytes + 2 * tarfile.BLOCKSIZE  # two blocks of zeros, then zeros up to a whole record
            self._file.write(bytes(end + -end % tarfile.RECORDSIZE - self._file.bytes))
            # The tar is renamed last: where there is a tar, its index is there too.
            write_text(self._path.with_suffix(".idx"), format_index(self._samples))

    def write(
        self, key: str, image: bytes, label: int, record: dict[str, Any] | None = None, extension: str = "jpg"
    ) -> None:
        """Add a sample.

        Args:
            key: unique in the set; letters, digits, `-` and `_`, at most 80.
            image: encoded picture.
            label: its class.
            record: further facts about the sample, stored as JSON.
            extension: of the picture's file name, without dot.
        """
        files = [(extension, image), ("cls", str(label).encode())]
        if record is not None:
            files.append(("json", json.dumps(record, ensure_ascii=True, sort_keys=True).encode()))
        named = [(f"{key}.{suffix}", data) for suffix, data in files]
        self._add(named, [tar_header(name, len(data)) for name, data in named])

    def write_members(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Add a sample as it was made elsewhere.

        Args:
            files: whole name, of any length, and content of each member. Bytes that are not UTF-8 are surrogates.
        """
        self._add(files, [_any_header(name, len(data)) for name, data in files])

    def _add(self, files: Sequence[tuple[str, bytes]], headers: Sequence[bytes]) -> None:
        members = []
        for (name, data), header in zip(files, headers, strict=True):
            suffix = name.rpartition("/")[2].partition(".")[2].lower()
            members.append(Member(suffix, self._file.bytes + len(header), len(data), name))
            self._file.write(b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE))))
        self._samples.append(members)

    @property
    def shard(self) -> Shard:
        """The shard's entry in the manifest; known after the context has ended."""
        return Shard(self._path.name, len(self._samples), self._file.bytes, self._file.sha256.hexdigest())


def write_identities(directory: Path, names: Sequence[str] | pa.Array, counts: Sequence[int] | pa.Array) -> None:
    """Write `identities.parquet`: label (index into `names`), name, number of pictures."""
    table = pa.table(
        {
            "label": pa.array(range(len(names)), pa.int64()),
            "name": pa.array(names, pa.string()),
            "count": pa.array(counts, pa.int64()),
        }
    )
    with written(directory / IDENTITIES_NAME) as file:
        pq.write_table(table, file)


def write_set(
    directory: Path,
    image_size: int,
    names: Sequence[str] | pa.Array,
    counts: Sequence[int] | pa.Array,
    shards: Sequence[Shard],
    aligner: Aligner | None = None,
) -> None:
    """Complete a set whose shards are written: identities, then the manifest, which makes it a set."""
    write_identities(directory, names, counts)
    Manifest(image_size, len(names), tuple(shards), aligner=aligner).save(directory)
