"""The `.idx` file beside each shard: where every member lies in the tar.

The text form is that of DALI's `wds2idx` (version 1.2): a first line `v1.2 SAMPLES`, then one line per sample of
`EXTENSION OFFSET SIZE NAME` groups. `fn.readers.webdataset` reads it as it is.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dist_train.errors import UserError

INDEX_VERSION = "v1.2"


class Member(NamedTuple):
    """One file of a sample: its extension, where its bytes start in the tar, how many, its name in the tar."""

    extension: str
    offset: int
    size: int
    name: str


def format_index(samples: Iterable[list[Member]]) -> str:
    """Text of an index over `samples`, each a list of members."""
    lines = [" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in members) for members in samples]
    return f"{INDEX_VERSION} {len(lines)}\n" + "".join(f"{line}\n" for line in lines)


def parse_members(line: str) -> list[Member]:
    """Members in one line of an index.

    Raises:
        ValueError: not groups of extension, offset, size and name.
    """
    words = line.split()
    if not words or len(words) % 4:
        raise ValueError(f"{line[:80]!r} is not EXTENSION OFFSET SIZE NAME groups")
    return [Member(words[i], int(words[i + 1]), int(words[i + 2]), words[i + 3]) for i in range(0, len(words), 4)]


def read_index(path: Path) -> list[list[Member]]:
    """Members of every sample of the shard whose index is `path`.

    Raises:
        UserError: missing, of another version, or cut off.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"shard index {path}: {error.strerror}; run `headcount data verify`") from error
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] != INDEX_VERSION or not head[1].isdigit():
        raise UserError(f"shard index {path}: first line {lines[:1]}, expected '{INDEX_VERSION} SAMPLES'")
    if len(lines) - 1 != int(head[1]):
        raise UserError(f"shard index {path}: {len(lines) - 1} lines for {head[1]} samples; it is cut off")
    samples = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            samples.append(parse_members(line))
        except ValueError as error:
            raise UserError(f"shard index {path}, line {number}: {error}") from error
    return samples
