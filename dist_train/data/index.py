"""The `.idx` file beside each shard: where every member lies in the tar.

The text form is that of DALI's `wds2idx` (version 1.2): a first line `v1.2 SAMPLES`, then one line per sample of
`EXTENSION OFFSET SIZE NAME` groups. `fn.readers.webdataset` reads it as it is. Blanks separate its words and lines end
at line feeds, so a name is written as in an address (%20) wherever it has anything but printable ASCII.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from dist_train.errors import UserError

INDEX_VERSION = "v1.2"
HEADER_BYTES = 512  # of a tar's header; a member's content follows its header at once
_KEPT = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


class Member(NamedTuple):
    """One file of a sample.

    Attributes:
        extension: what follows the first dot of its base name, in lower case.
        offset: of its content in the tar.
        size: of its content in bytes.
        name: in the tar; bytes that are not UTF-8 are surrogates, as by `os.fsdecode`.
    """

    extension: str
    offset: int
    size: int
    name: str


def format_index(samples: Iterable[list[Member]]) -> str:
    """Text of an index over `samples`, each a list of members."""
    lines = [
        " ".join(f"{_word(m.extension)} {m.offset} {m.size} {_word(m.name)}" for m in members) for members in samples
    ]
    return f"{INDEX_VERSION} {len(lines)}\n" + "".join(f"{line}\n" for line in lines)


def parse_members(line: bytes, tar_bytes: int) -> list[Member]:
    """Members in one line of an index.

    Args:
        line: without its end.
        tar_bytes: size of the tar.

    Raises:
        ValueError: not groups of extension, offset, size and name, or something outside of the tar.
    """
    # Blanks in names by others that are beyond ASCII separate no words.
    words: list[str] = (
        line.decode("ascii").split()
        if line.isascii()
        else [word.decode("utf-8", "surrogateescape") for word in line.split()]
    )
    if not words or len(words) % 4:
        raise ValueError(f"{_shortened(line)} is not EXTENSION OFFSET SIZE NAME groups")
    if b"%" in line:
        words = [_text(word) for word in words]
    members = []
    for i in range(0, len(words), 4):
        offset, size = int(words[i + 1]), int(words[i + 2])
        if offset < HEADER_BYTES or size < 0 or offset + size > tar_bytes:
            where = f"{size} bytes at {offset} for {words[i + 3][:80]!r}"
            raise ValueError(f"{where} do not lie inside of the tar, which has {tar_bytes}")
        members.append(Member(words[i], offset, size, words[i + 3]))
    return members


def read_index(path: Path, tar_bytes: int) -> list[list[Member]]:
    """Members of every sample of the shard whose index is `path`.

    Args:
        path: of the index.
        tar_bytes: size of the tar.

    Raises:
        UserError: missing, of another version, cut off, or a line that cannot be right.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"shard index {path}: {error.strerror}; run `headcount data verify`") from error
    if not lines[-1]:
        lines.pop()
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] != INDEX_VERSION.encode() or not head[1].isdigit():
        raise UserError(f"shard index {path}: first line {lines[:1]}, expected '{INDEX_VERSION} SAMPLES'")
    if head[1] != b"%d" % (len(lines) - 1):
        raise UserError(f"shard index {path}: {len(lines) - 1} lines for {head[1].decode()} samples; it is cut off")
    samples = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            samples.append(parse_members(line, tar_bytes))
        except ValueError as error:
            raise UserError(f"shard index {path}, line {number}: {error}") from error
    return samples


def _word(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe=_KEPT)


def _text(word: str) -> str:
    return unquote_to_bytes(word.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _shortened(line: bytes) -> str:
    return repr(line[:80])[1:]
