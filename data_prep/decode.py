"""The decoder of photos: encoded photos of all kinds become upright RGB pixels, or a reason why not.

The size is read from the header before anything is decoded, so that a small file cannot claim all memory. Greyscale,
alpha (over black), 16 bits, CMYK, animated GIF (first frame) and EXIF orientation are handled. On request libjpeg
decodes a JPEG at 1/2, 1/4 or 1/8 of its size in the frequency domain, which saves most of the decoding.
"""

import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dist_train.data import picture_header
from dist_train.data.pictures import MAX_SIDE
from dist_train.data.reject import Reject
from dist_train.runtime.text import first_line

MAX_PIXELS = 150_000_000  # 450 MB decoded
JPEGS = ("JPEG", "MPO")  # MPO: several JPEGs in one file, as phones make them, which Pillow opens as JPEG
# Pillow's other readers are left alone: that of PostScript runs Ghostscript, that of icons decodes while it opens.
_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
SHRINKS = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        pixels: [height, width, 3] uint8, RGB, upright.
        shrink: how many times smaller it is than the file says: 1, 2, 4 or 8.
    """

    pixels: NDArray[np.uint8]
    shrink: int


class PhotoHeader(NamedTuple):
    """The header of an encoded picture.

    Attributes:
        format: as Pillow names it.
        mode: pixel format, as Pillow names it.
        width: in pixels, before any rotation.
        height: in pixels, before any rotation.
    """

    format: str
    mode: str
    width: int
    height: int


def decode(data: bytes, least_side_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Photo | Reject:
    """The decoded photo.

    Args:
        data: the encoded photo.
        least_side_px: least longer side of the result, in pixels, down to which a JPEG may be shrunk; None: no
            shrinking.
        max_pixels: largest photo that is decoded; half of it where Pillow has to decode, which takes more memory,
            and a quarter for 16 bits.
    """
    if not data:
        return Reject("empty", "0 bytes")
    plain = picture_header.read_header(data)
    if plain is not None and plain.width * plain.height > max_pixels:  # Pillow would take memory for a WebP's canvas
        return _too_large(plain.width, plain.height, max_pixels)
    header = read_header(data)
    if isinstance(header, Reject):
        return header
    deep = header.mode.startswith(("I", "F")) or (plain is not None and plain.bits > 8)
    most = max_pixels // (4 if deep else 1 if _is_usual(header) else 2)
    if header.width * header.height > most:
        return _too_large(header.width, header.height, most)
    if max(header.width, header.height) > MAX_SIDE:
        return Reject("too large", f"{header.width}x{header.height} pixels, no side may have more than {MAX_SIDE}")
    if plain is not None and (reason := picture_header.cut_off(data, plain)):
        return Reject("truncated", reason)
    if plain is not None and (reason := picture_header.too_many_scans(data, plain)):
        return Reject("damaged", reason)
    shrink = _shrink(header, least_side_px)
    if (pixels := _by_opencv(data, header, shrink)) is not None:
        return Photo(pixels, shrink)
    by_pillow = _by_pillow(data)
    return by_pillow if isinstance(by_pillow, Reject) else Photo(by_pillow, 1)


def read_header(data: bytes) -> PhotoHeader | Reject:
    """Format and size of an encoded picture, without decoding it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_KINDS) as image:
                return PhotoHeader(image.format or "", image.mode, *image.size)
    except Image.DecompressionBombError as error:
        return Reject("too large", first_line(error))
    except UnidentifiedImageError:  # the text of the error holds a memory address, which differs from run to run
        return Reject("not a picture", _start(data))
    except Exception as error:  # a broken file can raise anything inside of Pillow's readers
        return Reject("not a picture", f"{_start(data)}: {first_line(error)}")


def _shrink(header: PhotoHeader, least_side_px: int | None) -> int:
    if header.format not in JPEGS or least_side_px is None:
        return 1
    longer = max(header.width, header.height)
    return next((by for by in SHRINKS if longer // by >= least_side_px), 1)


def _too_large(width: int, height: int, most: int) -> Reject:
    return Reject("too large", f"{width}x{height} pixels, at most {most} in all are decoded")


def _is_usual(header: PhotoHeader) -> bool:
    """Whether OpenCV decodes a picture to the pixels that this module promises."""
    return header.format in (*JPEGS, "PNG", "WEBP", "BMP") and header.mode in ("RGB", "L")


def _by_opencv(data: bytes, header: PhotoHeader, shrink: int) -> NDArray[np.uint8] | None:
    """A usual picture, decoded by OpenCV, faster than by Pillow; None for others, and where OpenCV fails."""
    if not _is_usual(header):
        return None
    flags = SHRINKS.get(shrink, cv2.IMREAD_COLOR)  # both apply the EXIF orientation
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _by_pillow(data: bytes) -> NDArray[np.uint8] | Reject:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_KINDS) as image:
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_rgb(upright), np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # as in `read_header`
        reason = "truncated" if "truncated" in str(error) else "damaged"
        return Reject(reason, f"{_start(data)}: {first_line(error)}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = 65535 if image.mode != "F" or values.max(initial=0) > 1 else 1
        return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if "A" in image.getbands():
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _start(data: bytes) -> str:
    return f"{len(data)} bytes that start with {data[:8].hex()}"
