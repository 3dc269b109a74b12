"""Pictures in a report: small, inside of the page, and marked as right or wrong where that is known."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2

from dist_train.data.pictures import PictureError, check, decode_checked

MOST_BYTES = 1 << 16  # of a picture that is shown as it is
_SIDE_PX = 256  # longer side of a larger one
UNREADABLE = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Crect width='8' height='8' "
    "fill='%23888'/%3E%3Cpath d='M2 2l4 4m0-4L2 6' stroke='%23fff' stroke-width='.5'/%3E%3C/svg%3E"
)
"""A grey square with a cross, for the `src` of an image that cannot be shown."""


class ShownPicture(NamedTuple):
    """A picture with a few words below it.

    Attributes:
        source: for the `src` of an image, the picture itself.
        caption: shown in one line, in full where the pointer rests.
        right: whether a search or a decision that the picture stands for was right; None where there is none.
    """

    source: str
    caption: str
    right: bool | None = None


class PictureRow(NamedTuple):
    """A picture that was asked about, and what was found for it, best first.

    Attributes:
        asked: the question.
        found: the answers.
        note: a line above both, or empty.
    """

    asked: ShownPicture
    found: Sequence[ShownPicture]
    note: str = ""


def shown(encoded: bytes, caption: str, right: bool | None = None) -> ShownPicture:
    """A picture of a set for a report, from its encoded bytes; what cannot be decoded is a grey square."""
    return ShownPicture(picture_source(encoded), caption, right)


def picture_source(encoded: bytes) -> str:
    """An encoded picture for the `src` of an image: as it is, or scaled to 256 pixels where it is above 64 KiB."""
    try:
        check(encoded)
        small = encoded if len(encoded) <= MOST_BYTES else _scaled(encoded)
    except PictureError:
        return UNREADABLE
    return data_uri(small)


def data_uri(encoded: bytes) -> str:
    """A PNG, WebP or JPEG for the `src` of an image."""
    kind = "png" if encoded.startswith(b"\x89PNG") else "webp" if encoded[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _scaled(encoded: bytes) -> bytes:
    pixels = decode_checked(encoded)
    factor = min(1.0, _SIDE_PX / max(pixels.shape[:2]))
    size = (max(1, round(factor * pixels.shape[1])), max(1, round(factor * pixels.shape[0])))
    return cv2.imencode(".jpg", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))[1].tobytes()
