"""Fonts of this machine, and the characters that each covers."""

import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTCollection, TTFont, TTLibError

from dist_train.errors import UserError

logger = logging.getLogger(__name__)

SYSTEM_FONT_DIRS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("~/.local/share/fonts").expanduser())
FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MIN_CHARACTERS = 500
"""Smaller fonts are symbol and fallback fonts, whose encodings are often their own."""
# Letters, numbers, punctuation and symbols; not marks that combine with a neighbour, spaces, controls, private use.
CATEGORIES = frozenset(
    ["Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"]
)
# Words of a font's name that mean a weight or width of a design, not another design.
STYLE_WORDS = re.compile(
    r"\b(thin|extra|ultra|semi|demi|light|book|regular|medium|bold|heavy|black|condensed|expanded|narrow|wide|italic|"
    r"oblique|jp|kr|sc|tc|hk|tw|cn|\d+)\b|[-_]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Font:
    """One face of a font file.

    Attributes:
        path: the file.
        face: its number in a collection.
        family: name of its design; weights and widths of one design are one family.
        name: family and style as the font states them.
        characters: code points that it maps to a glyph, ascending.
    """

    path: Path
    face: int
    family: str
    name: str
    characters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FontSearch:
    """Fonts that were found, and numbers of fonts that were left out by reason."""

    fonts: list[Font]
    counts: dict[str, int]


def default_font_dirs() -> list[Path]:
    """The fonts that matplotlib brings, then the system's."""
    return [Path(matplotlib.get_data_path()) / "fonts" / "ttf", *SYSTEM_FONT_DIRS]


def find_fonts(directories: Iterable[Path]) -> FontSearch:
    """All usable fonts below `directories`, one per family and style, in an order that depends on names alone.

    Raises:
        UserError: there is no usable font.
    """
    directories = list(directories)
    counts = {"found": 0, "unreadable": 0, "small": 0, "duplicate": 0, "used": 0}
    chosen: dict[str, Font] = {}
    paths = [path for where in directories for path in sorted(where.rglob("*")) if path.suffix.lower() in FONT_SUFFIXES]
    for path in paths:
        try:
            faces = _read_faces(path)
        except (TTLibError, OSError, KeyError, AssertionError) as error:
            logger.debug("font %s cannot be read: %s", path, error)
            counts["unreadable"] += 1
            continue
        for font in faces:
            counts["found"] += 1
            if len(font.characters) < MIN_CHARACTERS or font.family.startswith("last resort"):
                counts["small"] += 1
            elif font.name in chosen:
                counts["duplicate"] += 1
            else:
                chosen[font.name] = font
    counts["used"] = len(chosen)
    if not chosen:
        where = ", ".join(map(str, directories))
        raise UserError(f"no usable font in {where}: install some (`make fonts`), or name directories with --fonts")
    return FontSearch([chosen[name] for name in sorted(chosen)], counts)


def _read_faces(path: Path) -> list[Font]:
    if path.suffix.lower() in (".ttc", ".otc"):
        with TTCollection(path, lazy=True) as collection:
            return [_read_face(path, number, face) for number, face in enumerate(collection.fonts)]
    with TTFont(path, lazy=True) as face:
        return [_read_face(path, 0, face)]


def _read_face(path: Path, number: int, face: TTFont) -> Font:
    family = face["name"].getBestFamilyName() or path.stem
    style = face["name"].getBestSubFamilyName() or "Regular"
    design = " ".join(STYLE_WORDS.sub(" ", family).split()).lower() or family.lower()
    mapped = face.getBestCmap() or {}
    characters = tuple(sorted(code for code in mapped if unicodedata.category(chr(code)) in CATEGORIES))
    return Font(path, number, design, f"{family} {style}", characters)
