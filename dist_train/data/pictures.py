"""Encoded pictures before they are decoded: kind, size, whether they are whole, and whether they are small enough.

A file of a few bytes can claim any size, and decoders allocate before they find out; a JPEG that was cut off decodes to
grey without a word. So everything that decodes pictures, here and in `data_prep`, asks this module first.
"""

import io
import warnings
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_train.data.picture_header import (
    MAX_ALIGNED_PIXELS,
    PictureHeader,
    cut_off,
    described,
    read_header,
    too_many_scans,
)

Pixels = NDArray[Any]  # uint8; OpenCV types its results by their kind only

MAX_SIDE = 32_766  # OpenCV warps pictures with shorter sides only
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # the kinds that sets of pictures are made of
_OTHER_KINDS = ("BMP", "GIF", "TIFF")  # taken too, whatever a file's name says; Pillow reads their headers


class PictureError(Exception):
    """A picture cannot be used; the message is the reason."""


def check(encoded: Pixels | bytes, max_pixels: int = MAX_ALIGNED_PIXELS) -> PictureHeader:
    """The header of a picture that may be decoded.

    Raises:
        PictureError: no picture of a known kind, cut off, or too large.
    """
    data = bytes(encoded)
    header = read_header(data) or _other_header(data, max_pixels)
    if header is None:
        raise PictureError(f"cannot be decoded: {described(data)}, expected JPEG, PNG or WebP")
    if header.width * header.height > max_pixels:
        raise PictureError(f"{header.width}x{header.height} pixels, at most {max_pixels:,} in all are decoded")
    if reason := cut_off(data, header) or too_many_scans(data, header):
        raise PictureError(reason)
    return header


def decode_checked(encoded: Pixels | bytes) -> Pixels:
    """Decode a picture that passed `check` to [height, width, 3], blue first, 8 bits, whatever its depth and channels.

    Raises:
        PictureError: it cannot be decoded.
    """
    buffer = np.frombuffer(encoded, np.uint8) if isinstance(encoded, bytes) else encoded
    try:
        picture = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise PictureError(f"cannot be decoded: {error.err}") from error
    if picture is None:
        raise PictureError(f"cannot be decoded: {described(bytes(buffer))}")
    return picture


def _other_header(data: bytes, max_pixels: int) -> PictureHeader | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_OTHER_KINDS) as image:
                return PictureHeader(image.format or "", *image.size)
    except Image.DecompressionBombError as error:
        raise PictureError(f"too many pixels, at most {max_pixels:,} in all are decoded") from error
    except Exception:  # whatever a broken file makes one of Pillow's readers stumble over
        return None
