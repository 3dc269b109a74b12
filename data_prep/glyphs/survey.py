"""A survey of fonts: the (character, font) pairs that can be drawn, and the characters that look the same."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.glyphs.fonts import Font
from data_prep.glyphs.render import Renderer, fingerprint

PLACEHOLDER_CHARACTERS = 20
"""Number of characters with one drawing from which the drawing is the font's sign for 'missing'."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FontSurvey:
    """The survey of one font.

    Attributes:
        looks: fingerprint by character.
        blank: characters without ink.
        failed: characters that FreeType refused.
        placeholders: characters drawn as the font's sign for 'missing'.
    """

    looks: dict[int, bytes] = field(default_factory=dict)
    blank: int = 0
    failed: int = 0
    placeholders: int = 0


def survey_font(fonts: list[Font], number: int) -> FontSurvey:
    """The survey of font `number`, which draws each of its characters once."""
    renderer, survey = Renderer(fonts), FontSurvey()
    drawn: dict[bytes, list[int]] = defaultdict(list)
    for character in fonts[number].characters:
        try:
            mask = renderer.mask(number, character)
        except OSError:  # FreeType raises it for a broken glyph
            survey.failed += 1
            continue
        if mask is None:
            survey.blank += 1
        else:
            drawn[fingerprint(mask)].append(character)
    for look, characters in drawn.items():
        if len(characters) >= PLACEHOLDER_CHARACTERS:
            survey.placeholders += len(characters)
        else:
            survey.looks.update(dict.fromkeys(characters, look))
    return survey


@dataclass(frozen=True, slots=True)
class Conflict:
    """Characters that some font draws identically: the first is kept, the others are dropped."""

    kept: int
    dropped: tuple[int, ...]


def find_conflicts(surveys: Iterable[FontSurvey]) -> list[Conflict]:
    """Groups of characters linked by an identical drawing in any font, ascending; the lowest code point is kept."""
    parent: dict[int, int] = {}

    def root(character: int) -> int:
        while parent.setdefault(character, character) != character:
            parent[character] = parent[parent[character]]
            character = parent[character]
        return character

    for survey in surveys:
        first: dict[bytes, int] = {}
        for character, look in sorted(survey.looks.items()):
            one, other = root(first.setdefault(look, character)), root(character)
            parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for character in sorted(parent):
        groups[root(character)].append(character)
    return [Conflict(group[0], tuple(group[1:])) for _, group in sorted(groups.items()) if len(group) > 1]
