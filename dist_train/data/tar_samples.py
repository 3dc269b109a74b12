"""Samples in tars by WebDataset's rule: neighbours that share a key, the name up to the first dot of its last part.

`headcount data` takes samples; `prep` and `embed` take the photos in them, since photos of people come in folders and
under names with dots too. Where a label belongs to a key, a key has one picture; where two meet, none is taken.
"""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dist_train.data.index import HEADER_BYTES, Member, read_index
from dist_train.data.tars import LeftOut, walk_tar
from dist_train.errors import UserError
from dist_train.runtime.text import shown_name

log = logging.getLogger(__name__)

PHOTO_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
LABEL_KINDS = ("cls", "json")
_MOST_PADDING = 1 << 16  # bytes of zeros at a tar's end
_ONE_KEY = "a name is cut at its first dot, and files of one key are one sample"


class Sample(NamedTuple):
    """Neighbours that share a key.

    Attributes:
        key: with its folder.
        members: in the order of the tar.
        archive: which of the tars that are joined here.
    """

    key: str
    members: list[Member]
    archive: int = 0


class Photo(NamedTuple):
    """A picture in a tar.

    Attributes:
        picture: the picture.
        beside: what belongs to it by its key, by kind.
    """

    picture: Member
    beside: dict[str, Member]


class Parts(NamedTuple):
    """The members of a sample by what they are.

    Attributes:
        pictures: its pictures, of which a sample that is trained on has one.
        beside: its label and record, by kind: `cls`, `json`.
        clash: two members that cannot both belong to one sample, if there are any.
    """

    pictures: list[Member]
    beside: dict[str, Member]
    clash: tuple[Member, Member] | None


def parts_of(members: Sequence[Member]) -> Parts:
    """The members of a sample by what they are, which the last part of an extension says (`a.v2.jpg`)."""
    pictures: list[Member] = []
    beside: dict[str, Member] = {}
    clash = None
    for member in members:
        kind = member.extension
        if "." in kind:
            kind = kind.rpartition(".")[2]
        if kind in PHOTO_EXTENSIONS:
            if pictures:
                clash = clash or (pictures[0], member)
            pictures.append(member)
        elif kind in LABEL_KINDS:
            if kind not in beside:
                beside[kind] = member
                continue
            if beside[kind].extension == member.extension:
                clash = clash or (beside[kind], member)
            if member.extension == kind:
                beside[kind] = member
    return Parts(pictures, beside, clash)


def key_of(name: str) -> str:
    """Key of a file."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def walk_samples(path: Path) -> Iterator[Sample | LeftOut]:
    """Samples of a tar, and what is in none: files without a key, and all that `walk_tar` leaves out.

    What macOS adds (`._x`, `.DS_Store`, `__MACOSX/`) is passed over.

    Raises:
        UserError: not a tar.
    """
    sample: Sample | None = None
    left_out: list[LeftOut] = []  # since the sample began: it does not part the sample's files
    for found in walk_tar(path):
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        folder, _, base = found.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if base.startswith("._") or base == ".DS_Store" or "__MACOSX" in folder.split("/"):
            continue
        if not stem or not extension:
            left_out.append(LeftOut(found.name, "no picture", "no extension in its name, so it belongs to no sample"))
            continue
        key = key_of(found.name)
        if sample is None or (key, found.archive) != (sample.key, sample.archive):
            if sample is not None:
                yield sample
            yield from left_out
            sample, left_out = Sample(key, [], found.archive), []
        sample.members.append(Member(extension.lower(), found.offset, found.size, found.name))
    if sample is not None:
        yield sample
    yield from left_out


def read_samples(path: Path) -> Iterator[Sample | LeftOut]:
    """As `walk_samples`, by the index beside the tar where there is one that accounts for every byte of the tar.

    Raises:
        UserError: not a tar.
    """
    indexed = _indexed(path)
    yield from walk_samples(path) if indexed is None else indexed


def read_photos(path: Path, kinds: Collection[str]) -> Iterator[Photo | LeftOut]:
    """Pictures of a tar, each with the files of `kinds` that belong to it, and all that is no picture.

    Pictures of one key that have none of `kinds` beside them stand for themselves. Those that have are left out, since
    nobody can say whose label it is; so is one whose key was there before.

    Raises:
        UserError: not a tar.
    """
    first: dict[tuple[int, str], Member] = {}  # picture of every key with a label
    for sample in read_samples(path):
        if isinstance(sample, LeftOut):
            yield sample
            continue
        pictures, beside, clash = parts_of(sample.members)
        beside = {kind: member for kind, member in beside.items() if kind in kinds}
        if not pictures:
            name = sample.members[0].name
            yield LeftOut(name, "no picture", f"none among the {len(sample.members)} files of its key")
        elif not beside:
            yield from (Photo(picture, {}) for picture in pictures)
        elif clash:
            for picture in pictures:
                yield LeftOut(
                    picture.name, "same key", same_key(picture, clash[0] if clash[0] is not picture else clash[1])
                )
        elif before := first.get((sample.archive, sample.key)):
            yield LeftOut(pictures[0].name, "same key", same_key(pictures[0], before))
        else:
            first[sample.archive, sample.key] = pictures[0]
            yield Photo(pictures[0], beside)


def same_key(one: Member, other: Member) -> str:
    """What is wrong where two files have one key."""
    key = shown_name(key_of(one.name))
    return f"{shown_name(one.name)} and {shown_name(other.name)} both have the key {key}: {_ONE_KEY}"


def _indexed(path: Path) -> list[Sample] | None:
    """Samples by the index beside a tar; None where there is none, or one that may not tell all."""
    index = path.with_suffix(".idx")
    try:
        if index.stat().st_mtime < path.stat().st_mtime:
            return None
        samples = read_index(index, path.stat().st_size)
        return [Sample(key_of(line[0].name), line) for line in samples] if _accounts_for_all(path, samples) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except UserError as error:
        log.warning("%s: it is not used, the tar itself is read through", error)
        return None


def _accounts_for_all(path: Path, samples: list[list[Member]]) -> bool:
    """Whether nothing but headers lies between the members, and nothing but zeros behind them."""
    end = 0
    for members in samples:
        for member in members:
            if member.offset != end + HEADER_BYTES:
                return False
            end = member.offset - (-member.size // HEADER_BYTES) * HEADER_BYTES
    with path.open("rb", buffering=0) as file:
        rest = os.fstat(file.fileno()).st_size - end
        return 0 <= rest <= _MOST_PADDING and not any(os.pread(file.fileno(), rest, end))
