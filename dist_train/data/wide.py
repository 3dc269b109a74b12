"""Decodes pictures of a set to four channels: libjpeg-turbo fills them, and OpenCV warps them, faster than three."""

from contextlib import suppress

import cv2
import numpy as np

from dist_train.data.opencv import check_square, decode
from dist_train.data.pictures import PictureHeader, Pixels

try:
    import simplejpeg
except ImportError:  # the repository on the path of a bare machine; OpenCV gives the same pixels
    simplejpeg = None


class WideDecoder:
    """Decodes into memory of its own, without a copy: a picture is there until the next one is decoded.

    The pixels are those of `decode`, to which all goes that is no usual JPEG, and all that libjpeg-turbo warns of.
    """

    def __init__(self, size_px: int) -> None:
        # At an odd multiple of 16 bytes: into rows at multiples of 32 libjpeg-turbo writes past the cache, and the warp
        # that reads them at once would wait for the memory.
        spare = np.empty(size_px * size_px * 4 + 32, dtype=np.uint8)
        start = (16 - spare.ctypes.data) % 32
        self._memory = spare[start : start + size_px * size_px * 4].reshape(size_px, size_px, 4)

    def __call__(self, encoded: Pixels, set_px: int = 0) -> Pixels:
        """Decode to [side, side, 4], blue first, 8 bits; the fourth channel says nothing.

        Args:
            encoded: the picture.
            set_px: side of the set's pictures in pixels.

        Raises:
            BadSampleError: as `decode`.
        """
        header = check_square(encoded, set_px)
        if simplejpeg is not None and header.width == self._memory.shape[0] and _usual(encoded, header):
            with suppress(ValueError):
                simplejpeg.decode_jpeg(encoded, "BGRA", buffer=self._memory)
                return self._memory
        return cv2.cvtColor(decode(encoded, set_px), cv2.COLOR_BGR2BGRA)


def _usual(encoded: Pixels, header: PictureHeader) -> bool:
    """Whether it is a JPEG in colours; one with an orientation is for OpenCV, which turns it."""
    colours = header.kind == "JPEG" and header.channels == 3 and header.bits == 8
    return colours and b"Exif" not in bytes(encoded[: header.scans])
