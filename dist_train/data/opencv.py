"""Decode and augment on the CPU with OpenCV: one warp and one colour matrix per picture."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dist_train.data.augment import Augmentation, pixel_maps
from dist_train.data.shards import BadSampleError

Pixels = NDArray[Any]  # uint8; OpenCV types its results by their kind only
ERASED = 128  # grey level of an erased rectangle: nearest to 0 after normalising


def decode(encoded: Pixels) -> Pixels:
    """Decode a picture to [side, side, 3], blue first, 8 bits; grey, 16-bit and alpha pictures are converted.

    Raises:
        BadSampleError: cut off, not a picture, or not square.
    """
    reason = cut_off(encoded)
    if reason:
        raise BadSampleError(reason)
    try:
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadSampleError(f"cannot be decoded: {error.err}") from error
    if picture is None:
        raise BadSampleError(f"cannot be decoded: {len(encoded)} bytes that start with {bytes(encoded[:8])!r}")
    height, width = picture.shape[:2]
    if height != width:
        raise BadSampleError(f"{width}x{height} pixels, expected a square")
    return picture


def cut_off(encoded: Pixels) -> str | None:
    """Why a picture is incomplete, or None. Decoders fill the missing part with grey and say nothing."""
    head, tail = bytes(encoded[:4]), bytes(encoded[-256:])
    if head[:2] == b"\xff\xd8" and b"\xff\xd9" not in tail:
        return f"JPEG of {len(encoded)} bytes without an end: it is cut off"
    if head == b"\x89PNG" and b"IEND" not in tail:
        return f"PNG of {len(encoded)} bytes without an end: it is cut off"
    if head == b"RIFF" and int.from_bytes(bytes(encoded[4:8]), "little") + 8 > len(encoded):
        return f"WebP of {len(encoded)} bytes is cut off"
    return None


class Augmenter:
    """Applies the rows of an `Augmentation` and writes planes, red first.

    Holds the buffers that pictures pass through, so that none is allocated per picture.
    """

    def __init__(self, size_px: int) -> None:
        self._size = size_px
        self._warped = np.empty((size_px, size_px, 3), dtype=np.uint8)
        self._coloured = np.empty_like(self._warped)

    def apply(self, picture: Pixels, parameters: Augmentation, row: int, out: Pixels) -> None:
        """Augment a decoded `picture` [side, side, 3] by one row of the parameters into `out` [3, size, size]."""
        picture = self._sample(picture, parameters, row)
        if parameters.sigma[row] > 0:
            sigma = float(parameters.sigma[row])
            picture = cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        if parameters.quality[row]:
            _, packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(parameters.quality[row])])
            picture = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        picture = self._colour(picture, parameters, row)
        left, top, right, bottom = parameters.box[row]
        cv2.split(picture, [out[2], out[1], out[0]])
        if right > left:
            out[:, top:bottom, left:right] = ERASED

    def _sample(self, picture: Pixels, parameters: Augmentation, row: int) -> Pixels:
        side, input_px = int(parameters.side[row]), picture.shape[0]
        (a, b), (c, d) = parameters.linear[row]
        same_size = side == input_px == self._size
        if same_size and b == c == 0 and a in (1, -1) and d == 1 and not parameters.shift[row].any():
            return picture if a == 1 else cv2.flip(picture, 1, dst=self._warped)
        one = parameters._make(values[row : row + 1] for values in parameters)
        matrix = pixel_maps(one, np.array([input_px]))[0]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        if side == self._size:
            return cv2.warpAffine(picture, matrix, (side, side), dst=self._warped, flags=flags)
        reduced = cv2.warpAffine(picture, matrix, (side, side), flags=flags)
        return cv2.resize(reduced, (self._size, self._size), dst=self._warped, interpolation=cv2.INTER_LINEAR)

    def _colour(self, picture: Pixels, parameters: Augmentation, row: int) -> Pixels:
        matrix, offset = parameters.colour[row], parameters.offset[row]
        if offset == 0 and np.array_equal(matrix, _EYE):
            return picture
        # Pictures are blue first here: both axes of the matrix turn round.
        affine = np.column_stack([matrix[::-1, ::-1], np.full(3, offset)])
        return cv2.transform(picture, affine, dst=self._coloured)


_EYE = np.eye(3)
