"""The pairs of a list among the pictures of a set: found by a sample's key, or by the photo that it is from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_train.data.pair_list import Pair
from dist_train.data.photos import UNKNOWN, Missing, PhotoSearch, Sample, read_missing
from dist_train.data.reject import counted
from dist_train.errors import UserError
from dist_train.evaluate.sets import StoredSet

_NAMED = 3  # names in a message


@dataclass(frozen=True)
class ListedPairs:
    """Pairs of a set's pictures, each once.

    Attributes:
        left: number of the first picture in the set, int64 [n].
        right: of the second.
        same: the list's word on whether they show one identity, bool [n].
        notes: what was left out.
    """

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    notes: tuple[str, ...]


def find_pairs(pairs: Sequence[Pair], samples: StoredSet, listed: Path) -> ListedPairs:
    """The numbers of the pictures of `pairs`; those with a photo that the set rejected are left out and counted.

    Args:
        pairs: of the list.
        samples: the set.
        listed: path of the list, for messages.

    Raises:
        UserError: a name that the set does not know or that fits several pictures, a pair that the list has as both
            kinds, or no pair left of one kind.
        WorkError: a sample that cannot be used.
    """
    numbers, missing = _find(dict.fromkeys(name for pair in pairs for name in pair[:2]), samples, listed)
    kinds: dict[tuple[int, int], Pair] = {}
    repeated = lost = 0
    for pair in pairs:
        if pair.left in missing or pair.right in missing:
            lost += 1
            continue
        both = numbers[pair.left], numbers[pair.right]
        if both[0] == both[1]:
            raise UserError(
                f"{listed}: {pair.left!r} and {pair.right!r} are one picture of the set, paired with itself"
            )
        before = kinds.setdefault((min(both), max(both)), pair)
        if before.same != pair.same:
            raise UserError(
                f"{listed}: {pair.left!r} and {pair.right!r} are a pair of one identity and, in another line, of two; "
                "remove one of them"
            )
        repeated += before is not pair
    notes = []
    if lost:
        reasons = counted(Counter(each.reason for each in missing.values()))
        notes.append(f"{lost:,} pairs are left out, whose photos have no picture in the set: {reasons}")
    if repeated:
        notes.append(f"{repeated:,} pairs are in the list more than once, and count once")
    same = np.array([pair.same for pair in kinds.values()], bool)
    for kind, told in ((True, "one identity"), (False, "two identities")):
        if not (same == kind).any():
            raise UserError(
                f"{listed}: no pair of {told} with pictures in {samples.directory}; operating points need both kinds"
            )
    ends = np.array(list(kinds), np.int64).reshape(-1, 2)
    return ListedPairs(ends[:, 0], ends[:, 1], same, tuple(notes))


def _find(wanted: dict[str, None], samples: StoredSet, listed: Path) -> tuple[dict[str, int], dict[str, Missing]]:
    """The number of each wanted name's picture, or why it has none."""
    by_key: dict[str, int] = {}
    sources: list[Sample] = []
    for number in range(len(samples)):
        sample = samples.sample(number)
        if sample.key in wanted and by_key.setdefault(sample.key, number) != number:
            raise UserError(
                f"{listed}: {sample.key!r} is the key of several samples of {samples.directory}; name photos by their "
                "source"
            )
        if isinstance(source := (sample.record or {}).get("source"), str):
            sources.append(Sample(source, 0, number))
    search = PhotoSearch(name for name in wanted if name not in by_key)
    places: list[Sample | Missing] = [*sources, *read_missing(samples.directory)]
    for place in places:
        search.offer(place)
    found = search.found()
    missing = {name: place for name, place in found.items() if isinstance(place, Missing)}
    numbers = by_key | {name: place.sample for name, place in found.items() if isinstance(place, Sample)}
    if unknown := [name for name, place in missing.items() if place.reason == UNKNOWN]:
        told = ", ".join(map(repr, unknown[:_NAMED])) + (", ..." if len(unknown) > _NAMED else "")
        raise UserError(
            f"{listed}: {len(unknown):,} of its {len(wanted):,} pictures are not in set {samples.directory}, neither "
            f"by a sample's key nor by its source, nor among its rejects: {told}; list and set do not belong together"
        )
    return numbers, missing
