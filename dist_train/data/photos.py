"""Photos that a list names, searched for among the sources that a set notes beside its pictures.

Every sample of a set that `headcount prep align` made says in its `.json` which photo it is from, and `rejects.parquet`
which photos are not in it and why. So each photo of the list is in the set, rejected, or unknown to it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from dist_train.data.reject import REJECTS_NAME
from dist_train.errors import UserError
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line

UNKNOWN = "not in the set"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_TAR = re.compile(r"^[^/]*?\.(tar|tar\.gz|tgz):", re.IGNORECASE)


class Sample(NamedTuple):
    """The place of a photo's picture in the set: number of its shard, and number of the sample in the shard."""

    source: str
    shard: int
    sample: int


class Missing(NamedTuple):
    """A photo of the list without a picture in the set, and the reason."""

    source: str
    reason: str
    detail: str


def read_missing(directory: Path) -> Iterator[Missing]:
    """The photos that a set has no picture of, as its list of rejects has them.

    Raises:
        UserError: the list cannot be read.
    """
    path = directory / REJECTS_NAME
    if not path.is_file():
        return
    try:
        for batch in bounded_batches(path, ["source", "reason", "detail"]):
            for row in batch.to_pylist():
                yield Missing(str(row["source"]), str(row["reason"]), str(row["detail"]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


class PhotoSearch:
    """Search for the photos of a list among the sources of a set, whose paths may begin in another folder.

    Two names match if they are equal, or if one ends with a slash and the other, with or without a picture's suffix:
    `Ann/Ann_0001` matches `lfw.tar:lfw/Ann/Ann_0001.jpg`. Equal names win over endings.
    """

    def __init__(self, wanted: Iterable[str]) -> None:
        self._stems = {photo: _stem(photo) for photo in wanted}
        self._by_stem: dict[str, list[str]] = {}
        self._by_ending: dict[str, list[str]] = {}
        for photo, stem in self._stems.items():
            self._by_stem.setdefault(stem, []).append(photo)
            for ending in _endings(stem)[1:]:
                if "/" in ending:  # a bare file name can belong to photos of several people
                    self._by_ending.setdefault(ending, []).append(photo)
        self._matches: dict[str, tuple[int, list[Sample | Missing]]] = {}

    def offer(self, place: Sample | Missing) -> None:
        """Match a source with the wanted photos."""
        name = _member(place.source)
        stem = _stem(name)
        for ending in _endings(stem):
            for photo in self._by_stem.get(ending, ()):
                self._match(photo, 0 if photo in (name, place.source) else 1 if ending == stem else 2, place)
        for photo in self._by_ending.get(stem, ()):
            self._match(photo, 2, place)

    def _match(self, photo: str, rank: int, place: Sample | Missing) -> None:
        best, places = self._matches.get(photo, (rank, []))
        if rank <= best:
            self._matches[photo] = rank, [*(places if rank == best else ()), place]

    def found(self) -> dict[str, Sample | Missing]:
        """The place of each photo.

        Raises:
            UserError: a photo matches several sources, or several photos match one source.
        """
        result: dict[str, Sample | Missing] = {}
        taken: dict[Sample | Missing, str] = {}
        for photo in self._stems:
            _, places = self._matches.get(photo, (0, [Missing(photo, UNKNOWN, "neither there nor in its rejects")]))
            if len(places) > 1:
                told = ", ".join(_told(place) for place in places[:3])
                raise UserError(
                    f"photo {photo!r} of the list could be any of {len(places)} in the set: {told}; name it with "
                    "more of its path, and align with one face a photo (not --faces all)"
                )
            result[photo] = places[0]
            if (other := taken.setdefault(places[0], photo)) != photo:
                raise UserError(
                    f"photos {other!r} and {photo!r} of the list would both be {places[0].source!r} of the set; name "
                    "them as the set does"
                )
        return result


def _told(place: Sample | Missing) -> str:
    return repr(place.source) + ("" if isinstance(place, Sample) else f" (rejected: {place.reason})")


def _member(source: str) -> str:
    """The name of a photo without that of the tar around it (`TAR:MEMBER`)."""
    return _TAR.sub("", source)


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path)


def _endings(stem: str) -> list[str]:
    """The stem, and its endings after each slash."""
    parts = stem.strip("/").split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]
