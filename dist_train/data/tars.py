"""Tars as anybody writes them, walked header by header: every file in them, and everything that is none.

`tarfile` reads a header; the walk itself is here. `tarfile`'s own stops at the end mark between two joined tars, takes
damage for the end, says neither, and lets a header of a few bytes claim any memory or time.
"""

import logging
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dist_train.errors import UserError

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_MOST_EXTENDED = 1 << 18  # bytes of an extended header, which holds a name and attributes
_EXTENDED = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME})
_OF_NO_FILE = frozenset({tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, b"V"})  # V: a volume's name
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Entry(NamedTuple):
    """A regular file in a tar.

    Attributes:
        name: as the tar has it; bytes that are not UTF-8 are surrogates, as by `os.fsdecode`.
        offset: of its content in the tar.
        size: of its content in bytes.
        archive: which of the tars that are joined here; 0 for the first.
    """

    name: str
    offset: int
    size: int
    archive: int = 0


class LeftOut(NamedTuple):
    """Something in a tar that cannot be used.

    Attributes:
        name: of the file, or `bytes X to Y`.
        reason: out of few, for counting.
        detail: what is wrong with it.
    """

    name: str
    reason: str
    detail: str


def walk_tar(path: Path) -> Iterator[Entry | LeftOut]:
    """Everything in a tar but folders, in its order. Tars that are joined end to end are all walked.

    Behind damage the walk goes on at the next header; what lies between is one `LeftOut`.

    Raises:
        UserError: it cannot be read, or does not begin as a tar does.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield from _walk(file.fileno(), os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _walk(fd: int, size: int, path: Path) -> Iterator[Entry | LeftOut]:
    at = archive = 0
    damage: tuple[int, int] | None = None  # bytes without a header
    extended: dict[bytes, bytes] = {}
    ended = True  # an end mark was the last that was seen
    while at < size:
        header = os.pread(fd, _BLOCK, at)
        if len(header) < _BLOCK and at and any(header):
            if damage:
                yield _damaged(*damage)
            yield LeftOut(
                f"bytes {at} to {size}", "truncated", "the tar is cut off in a header: what came after is lost"
            )
            return
        if not any(header):
            archive += not ended
            at, ended, extended = at + _BLOCK, True, {}
            continue
        ended = False
        info = _parsed(header)
        body = at + _BLOCK
        if info is not None and info.type in _EXTENDED:
            found = _extension(info, os.pread(fd, info.size, body)) if info.size <= _MOST_EXTENDED else None
            if found is not None:
                extended |= found
                at = body + _padded(info.size)
                continue
            info = None
        if info is None:
            if at == 0:
                raise UserError(f"{path}: not an uncompressed tar: {_instead(header)}")
            damage = (damage[0] if damage else at, min(body, size))
            at, extended = body, {}
            continue
        if damage:
            yield _damaged(*damage)
            damage = None
        if info.type in _OF_NO_FILE:
            at = body + _padded(info.size)
            continue
        name, length = _name(info, extended), int(extended.get(b"size", info.size))
        sparse = any(key.startswith(b"GNU.sparse") for key in extended)
        extended = {}
        if info.type == tarfile.GNUTYPE_SPARSE:
            sparse, body = True, _behind_sparse_map(fd, header, body)
        has_body = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        at = body + _padded(length) if has_body else body
        if info.isdir():
            continue
        if info.type in _KINDS or sparse:
            yield LeftOut(name, "not a file", _KINDS.get(info.type, "a sparse file") + " in a tar")
        elif body + length > size:
            missing = body + length - size
            yield LeftOut(
                name, "truncated", f"the tar is cut off {missing} bytes before its end: what came after is lost"
            )
            return
        else:
            yield Entry(name, body, length, archive)
    if damage:
        yield _damaged(*damage)
    elif not ended:
        log.warning("%s has no end mark: if it was cut off, nobody can tell what came after byte %d", path, size)


def _parsed(header: bytes) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _extension(info: tarfile.TarInfo, body: bytes) -> dict[bytes, bytes] | None:
    """What an extended header says about the file after it: GNU's long name, or the records of PAX; None: damaged."""
    if len(body) < info.size:
        return None
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {b"path": body.partition(b"\0")[0]}
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body) and body[at]:
        record = re.compile(rb"([0-9]{1,9}) ").match(body, at)  # LENGTH KEY=VALUE\n, the length that of all of it
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(body):
            return None
        key, _, value = body[record.end() : end - 1].partition(b"=")
        if key == b"size" and not re.fullmatch(rb"[0-9]{1,18}", value):
            return None
        found[key] = value
        at = end
    return found


def _name(info: tarfile.TarInfo, extended: dict[bytes, bytes]) -> str:
    raw = extended.get(b"GNU.sparse.name") or extended.get(b"path")
    return info.name if raw is None else raw.decode("utf-8", "surrogateescape")


def _behind_sparse_map(fd: int, header: bytes, body: int) -> int:
    """Where the content of a sparse file of old GNU form begins: behind further blocks of its map."""
    more = header[482]
    while more:
        block = os.pread(fd, _BLOCK, body)
        body += _BLOCK
        more = block[504] if len(block) == _BLOCK else 0
    return body


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _damaged(start: int, stop: int) -> LeftOut:
    return LeftOut(f"bytes {start} to {stop}", "damaged", "no tar header: the files in there are lost")


def _instead(header: bytes) -> str:
    for magic, kind in _COMPRESSED.items():
        if header.startswith(magic):
            return f"it is compressed by {kind}; decompress it, since its files are read by their place"
    return f"its first bytes are {header[:8].hex()}"
