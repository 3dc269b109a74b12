"""Decode and augment on the CPU with OpenCV: one warp and one colour matrix per picture."""

import cv2
import numpy as np

from dist_train.data.augment import Augmentation, pixel_maps
from dist_train.data.picture_header import PictureHeader
from dist_train.data.pictures import PictureError, Pixels, check, decode_checked
from dist_train.data.shards import BadSampleError

MOST_ENLARGED = 4  # times; a picture smaller than a quarter of its set's is an accident
ERASED = 128  # grey level of an erased rectangle: nearest to 0 after normalising


def decode(encoded: Pixels, set_px: int = 0) -> Pixels:
    """Decode a picture of a set to [side, side, 3], blue first, 8 bits; grey, 16-bit and alpha pictures are converted.

    Args:
        encoded: the picture.
        set_px: side of the set's pictures in pixels.

    Raises:
        BadSampleError: cut off, too large, too small for its set, not a picture, or not square.
    """
    check_square(encoded, set_px)
    try:
        picture = decode_checked(encoded)
    except PictureError as error:
        raise BadSampleError(str(error)) from error
    height, width = picture.shape[:2]
    if height != width:
        raise BadSampleError(f"{width}x{height} pixels, expected a square")
    return picture


def check_square(encoded: Pixels, set_px: int = 0) -> PictureHeader:
    """The header of a picture of a set, checked for all that is known before decoding.

    Raises:
        BadSampleError: as `decode`.
    """
    try:
        header = check(encoded)
    except PictureError as error:
        raise BadSampleError(str(error)) from error
    if header.width != header.height:
        raise BadSampleError(f"{header.width}x{header.height} pixels, expected a square")
    if header.width * MOST_ENLARGED < set_px:
        raise BadSampleError(
            f"{header.width}x{header.width} pixels, less than 1/{MOST_ENLARGED} of its set's {set_px}x{set_px}"
        )
    return header


class Augmenter:
    """Applies the rows of an `Augmentation` and writes planes, red first.

    Holds the buffers that pictures pass through, and takes the parameters of many pictures at once, so that a picture
    costs little more than the calls into OpenCV.
    """

    def __init__(self, size_px: int) -> None:
        self._size = size_px
        self._buffer = np.empty((size_px, size_px, 3), dtype=np.uint8)
        self._four = np.empty((size_px, size_px, 4), dtype=np.uint8)
        self._warped = np.empty_like(self._four)

    def load(self, parameters: Augmentation) -> None:
        """Take the parameters of the next pictures."""
        self._parameters = parameters
        self._maps = pixel_maps(parameters, np.full(len(parameters.side), self._size))
        linear, full = parameters.linear, (parameters.side == self._size) & ~parameters.shift.any(axis=1)
        upright = full & (linear[:, 0, 1] == 0) & (linear[:, 1, 0] == 0) & (linear[:, 1, 1] == 1)
        self._kept = (upright & (linear[:, 0, 0] == 1)).tolist()
        self._mirrored = (upright & (linear[:, 0, 0] == -1)).tolist()
        # Pictures are blue first here: both axes of the colour matrix turn round.
        self._colours = np.concatenate(
            [parameters.colour[:, ::-1, ::-1], np.repeat(parameters.offset[:, None, None], 3, axis=1)], axis=2
        )  # [n, 3, 4]
        self._coloured = (self._colours != np.eye(3, 4)).any(axis=(1, 2)).tolist()
        self._sides = parameters.side.tolist()
        self._sigmas = parameters.sigma.tolist()
        self._qualities = parameters.quality.tolist()
        self._boxes = parameters.box.tolist()

    def apply(self, picture: Pixels, row: int, out: Pixels) -> None:
        """Augment a decoded `picture` [side, side, 3] by one row of the parameters into `out` [3, size, size]."""
        if picture.shape[0] != self._size or not self._kept[row]:
            picture = self._sample(picture, row)
        if self._sigmas[row]:
            picture = cv2.GaussianBlur(picture, (0, 0), self._sigmas[row], borderType=cv2.BORDER_REFLECT_101)
        if self._qualities[row]:
            _, packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self._qualities[row]])
            unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
            picture = picture if unpacked is None else unpacked
        if self._coloured[row]:
            cv2.transform(picture, self._colours[row], dst=self._buffer)
            picture = self._buffer
        cv2.split(picture, (out[2], out[1], out[0]))
        left, top, right, bottom = self._boxes[row]
        if right > left:
            out[:, top:bottom, left:right] = ERASED

    def _sample(self, picture: Pixels, row: int) -> Pixels:
        side, input_px = self._sides[row], picture.shape[0]
        if input_px == self._size:
            if self._mirrored[row]:
                return cv2.flip(picture, 1, dst=self._buffer)
            matrix = self._maps[row]
        else:
            matrix = pixel_maps(self._parameters, np.full(len(self._sides), input_px))[row]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        # A warp of four channels takes two thirds of the time of one of three.
        four = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA, dst=self._four)
        if side == self._size:
            warped = cv2.warpAffine(four, matrix, (side, side), dst=self._warped, flags=flags)
            return cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR, dst=self._buffer)
        reduced = cv2.cvtColor(cv2.warpAffine(four, matrix, (side, side), flags=flags), cv2.COLOR_BGRA2BGR)
        return cv2.resize(reduced, (self._size, self._size), dst=self._buffer, interpolation=cv2.INTER_LINEAR)
