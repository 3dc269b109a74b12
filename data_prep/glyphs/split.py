"""The split of characters and fonts into a training part and a held-out part, disjoint in both."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.glyphs.fonts import Font
from dist_train.errors import UserError

LARGEST_FAMILY = 1 / 3
"""Largest share of all drawings of a family that may be held out; beyond it too little is left to train on."""


@dataclass(frozen=True, slots=True)
class Split:
    """Both parts: by character (code point) the numbers of the fonts that draw it; parts share neither."""

    train: dict[int, tuple[int, ...]]
    heldout: dict[int, tuple[int, ...]]
    heldout_families: tuple[str, ...]


def split_by_identity_and_font(
    fonts: Sequence[Font],
    drawable: Sequence[frozenset[int]],
    *,
    seed: int,
    min_fonts: int,
    identities: int | None,
    heldout_identities: int,
    heldout_fonts: float,
) -> Split:
    """The split of the drawable (font, character) pairs.

    Whole families are held out until the share `heldout_fonts` of the fonts is reached, each time the family that adds
    most characters with `min_fonts` held-out fonts.

    Args:
        fonts: all fonts.
        drawable: characters that each font draws, without conflicts.
        seed: seed of the choice of characters.
        min_fonts: fonts that an identity needs in its part.
        identities: most identities to train on; None: all.
        heldout_identities: most identities held out.
        heldout_fonts: share of fonts held out, 0..1.

    Raises:
        UserError: the fonts do not give both parts.
    """
    held = _heldout_fonts(fonts, drawable, min_fonts, heldout_fonts)
    parts: list[dict[int, list[int]]] = [defaultdict(list), defaultdict(list)]
    for number, characters in enumerate(drawable):
        for character in characters:
            parts[number in held][character].append(number)
    train, heldout = ({c: tuple(f) for c, f in sorted(part.items()) if len(f) >= min_fonts} for part in parts)
    random = np.random.Generator(np.random.Philox(key=seed))
    chosen = random.permutation(np.array(sorted(heldout), dtype=np.int64))[:heldout_identities].tolist()
    rest = [character for character in train if character not in set(chosen)]
    if identities is not None:
        rest = random.permutation(np.array(rest, dtype=np.int64))[:identities].tolist()
    if len(chosen) < 2 or len(rest) < 2:
        raise UserError(
            f"{len(fonts)} fonts give {len(rest)} identities to train on and {len(chosen)} held out, each in "
            f">= {min_fonts} fonts: too few; install more (`make fonts`), or lower --min-fonts"
        )
    return Split(
        {character: train[character] for character in sorted(rest)},
        {character: heldout[character] for character in sorted(chosen)},
        tuple(sorted({fonts[number].family for number in held})),
    )


def _heldout_fonts(
    fonts: Sequence[Font], drawable: Sequence[frozenset[int]], min_fonts: int, share: float
) -> frozenset[int]:
    families: dict[str, list[int]] = defaultdict(list)
    for number, font in enumerate(fonts):
        families[font.family].append(number)
    total = sum(map(len, drawable))
    free = {
        family: members
        for family, members in families.items()
        if sum(len(drawable[number]) for number in members) <= LARGEST_FAMILY * total
    }
    if len(families) < 2 or not free:
        raise UserError(
            f"{len(fonts)} fonts of {len(families)} families: too few to hold a family out; install more (`make fonts`)"
        )
    held: list[int] = []
    views: dict[int, int] = defaultdict(int)
    while free and (not held or len(held) < share * len(fonts)):

        def gain(family: str) -> tuple[int, str]:
            members = free[family]
            added: dict[int, int] = defaultdict(int)
            for number in members:
                for character in drawable[number]:
                    added[character] += 1
            new = sum(views[c] < min_fonts <= views[c] + n for c, n in added.items())
            return new, family

        best = max(free, key=gain)
        for number in free.pop(best):
            held.append(number)
            for character in drawable[number]:
                views[character] += 1
    return frozenset(held)
