"""Clean glyphs: a character drawn by a font, as a tight coverage mask."""

import hashlib

import numpy as np
from PIL import Image, ImageFont

from data_prep.glyphs.fonts import Font

EM_PX = 72
"""Size of the em square at which masks are drawn."""
MAX_EMS = 1.6
"""Largest glyphs in ems; larger ones (long ligatures, whole words) could not be read at picture size."""


class Renderer:
    """A renderer of characters, which keeps fonts open: one for each process."""

    def __init__(self, fonts: list[Font]) -> None:
        self._fonts = fonts
        self._open: dict[int, ImageFont.FreeTypeFont] = {}

    def mask(self, font: int, character: int) -> np.ndarray | None:
        """Coverage uint8 [h, w] of a character in a font (its number), cropped to the ink; None when blank.

        Raises:
            OSError: FreeType cannot draw it.
        """
        if font not in self._open:
            chosen = self._fonts[font]
            self._open[font] = ImageFont.truetype(
                str(chosen.path), EM_PX, index=chosen.face, layout_engine=ImageFont.Layout.BASIC
            )
        core = self._open[font].getmask(chr(character), mode="L")
        width, height = core.size
        if not width or not height or max(width, height) > MAX_EMS * EM_PX:
            return None
        # By way of a picture: numpy itself would ask for each pixel as a Python number, which takes most of the time.
        picture = Image.new("L", core.size)
        picture.im.paste(core, (0, 0, width, height))
        mask = np.asarray(picture)
        rows, columns = np.flatnonzero(mask.max(axis=1) > 64), np.flatnonzero(mask.max(axis=0) > 64)
        if not len(rows) or not len(columns):
            return None
        return np.ascontiguousarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def fingerprint(mask: np.ndarray) -> bytes:
    """A fingerprint of a mask, equal for glyphs that look the same wherever they stand on the line."""
    return hashlib.blake2b(mask.tobytes(), digest_size=12, key=repr(mask.shape).encode()).digest()
