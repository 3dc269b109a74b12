"""Who is held out, and which of their pictures are known: pure functions of counts, hashes and times.

Identities and pictures are ordered by hashes of names and keys, so that neither the order of the shards nor of the
labels matters, and a larger part holds all identities of a smaller one.
"""

import re
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from dist_train.data.counters import Ints, UInts
from dist_train.errors import UserError

_COUNT = re.compile("[0-9]{1,10}")
_PERCENT = re.compile("([0-9]{1,3}(?:[.][0-9]{1,9})?)%")
_LEAST = 2  # identities, for pairs of two people
_SHARD_BITS = 32  # a place has the sample's number in its low bits


class Wanted(NamedTuple):
    """How many identities are to be held out.

    Attributes:
        text: as the user gave it.
        number: of identities; None where a share was given.
        share: of the identities, 0 to 1.
    """

    text: str
    number: int | None
    share: Decimal = Decimal(0)

    def of(self, identities: int) -> int:
        """How many of `identities` these are."""
        return round(self.share * identities) if self.number is None else self.number


def parse_wanted(text: str) -> Wanted:
    """What `--identities` says: a number, or a percentage.

    Raises:
        UserError: neither, none or all.
    """
    if _COUNT.fullmatch(text):
        if int(text) < _LEAST:
            raise UserError(f"--identities {text}: expected at least {_LEAST}, so that there are pairs of two people")
        return Wanted(text, int(text))
    percent = _PERCENT.fullmatch(text)
    if percent is None:
        raise UserError(f"--identities {text!r}: expected a number of identities, as 500, or a percentage, as 10%")
    share = Decimal(percent[1]) / 100
    if not 0 < share < 1:
        raise UserError(f"--identities {text}: expected more than 0% and less than 100%, so that both parts have some")
    return Wanted(text, None, share)


def choose_heldout(counts: Ints, hashes: UInts, wanted: Wanted, gallery: int) -> Ints:
    """Labels of the identities that are held out, ascending: the first by hash of those with enough pictures.

    Args:
        counts: pictures of each identity [classes].
        hashes: of each identity [classes].
        wanted: how many.
        gallery: pictures of each of them that are known; one more is needed.

    Raises:
        UserError: there are not so many, too few, or nobody would be left to train on.
    """
    there = int((counts > 0).sum())
    able = np.flatnonzero(counts > gallery)
    number = wanted.of(there)
    found = f"--identities {wanted.text}: {number:,} of {there:,} identities"
    if number >= there:
        raise UserError(f"{found}: nobody would be left to train on; hold out fewer")
    if number < _LEAST:
        raise UserError(f"{found}: expected at least {_LEAST}, so that there are pairs of two people; hold out more")
    if number > len(able):
        raise UserError(
            f"{found}, but only {len(able):,} have more than {gallery} picture{'s' if gallery > 1 else ''}, {gallery} "
            "for the gallery and one as a probe; hold out fewer"
        )
    first = np.lexsort((able, hashes[able]))[:number]
    return np.sort(able[first])


def new_labels(counts: Ints, heldout: Ints) -> tuple[Ints, np.ndarray]:
    """New label of each identity in its part, and whether it is held out: int64 and bool [classes].

    Labels of a part count from 0 in the order of the old ones; an identity without pictures has -1.
    """
    is_held = np.zeros(len(counts), dtype=bool)
    is_held[heldout] = True
    labels = np.full(len(counts), -1, dtype=np.int64)
    for part in (is_held, ~is_held & (counts > 0)):
        labels[part] = np.arange(part.sum())
    return labels, is_held


def place(unit: Ints | int, numbers: Ints | int) -> Ints:
    """Places of samples of a set, which order them by shard and number: one number each."""
    return (np.asarray(unit, dtype=np.int64) << _SHARD_BITS) | numbers


def unit_of(places: Ints) -> Ints:
    """Shard of each place."""
    return places >> _SHARD_BITS


class HeldOut(NamedTuple):
    """The samples of the identities that are held out, identity by identity, the gallery's first.

    Attributes:
        labels: new label of each sample, ascending, int64 [n].
        places: of each sample, int64 [n].
        in_gallery: bool [n].
    """

    labels: Ints
    places: Ints
    in_gallery: np.ndarray

    @classmethod
    def ordered(cls, labels: Ints, times: np.ndarray, hashes: UInts, places: Ints, gallery: int) -> "HeldOut":
        """Bring samples into order: the earliest of an identity first, those of one time by hash.

        Args:
            labels: new labels, int64 [n].
            times: float64 [n]; all nan where times do not matter.
            hashes: of the samples [n].
            places: of the samples [n].
            gallery: how many of an identity are the gallery's.
        """
        order = np.lexsort((places, hashes, times, labels))
        labels = labels[order]
        rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # of the sample within its identity
        return cls(labels, places[order], rank < gallery)
