"""Augmentation parameters: one row of numbers per sample, drawn from its (seed, epoch, index, view).

The rows, not the pictures, are what backends share: OpenCV and DALI apply the same affine map, colour matrix and so on.
All geometry is one affine map and all colour is one matrix, so a picture is resampled once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.data.config import AugmentConfig
from dist_train.data.counters import Ints, uniforms

_STREAM = 1
_DRAWS = 20  # a number per parameter, used or not: switching one change on leaves the others as they were
_COMMON_DRAWS = 9  # those of flip, rotation, crop and colour, which come first
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, R, G, B
_MID_GREY = 127.5

Floats = NDArray[np.float64]


class Augmentation(NamedTuple):
    """Parameters of n samples.

    Attributes:
        linear: [n, 2, 2], maps output to input coordinates; both pictures span -1 .. 1.
        shift: [n, 2], added to it.
        side: [n], pixels of the side that is sampled before enlarging to the output.
        sigma: [n], blur's standard deviation in output pixels; 0: none.
        quality: [n], JPEG quality; 0: no compression.
        colour: [n, 3, 3], matrix over R, G, B of 0 .. 255.
        offset: [n], added to every channel after it.
        box: [n, 4], x0, y0, x1, y1 in pixels of the erased rectangle; empty: none.
    """

    linear: Floats
    shift: Floats
    side: Ints
    sigma: Floats
    quality: Ints
    colour: Floats
    offset: Floats
    box: Ints


def draw(config: AugmentConfig, seed: int, epochs: Ints, indices: Ints, size_px: int, view: int = 0) -> Augmentation:
    """Parameters of the samples at (`epochs`, `indices`), both [n], in a `view`, for pictures of side `size_px`."""
    rare = config.low_resolution or config.blur or config.jpeg or config.erase
    drawn = uniforms(seed, _STREAM, epochs, indices, _DRAWS if rare else _COMMON_DRAWS, view)
    u = np.ones((_DRAWS, len(indices)))
    u[: drawn.shape[1]] = drawn.T  # [20, n]
    flip = np.where(u[0] < config.flip, -1.0, 1.0)
    angle = np.deg2rad(config.rotation) * (2 * u[1] - 1)
    scale = 1 - (1 - config.crop) * u[2]
    shift = (1 - scale)[:, None] * (2 * u[3:5].T - 1)  # [n, 2]
    cos, sin = np.cos(angle), np.sin(angle)
    linear = scale[:, None, None] * np.stack([flip * cos, -sin, flip * sin, cos], axis=-1).reshape(-1, 2, 2)

    brightness = 1 + config.brightness * (2 * u[5] - 1)
    contrast = 1 + config.contrast * (2 * u[6] - 1)
    saturation = np.where(u[8] < config.grey, 0.0, 1 + config.saturation * (2 * u[7] - 1))
    kept, mixed = saturation[:, None, None] * np.eye(3), (1 - saturation)[:, None, None] * _LUMA
    colour = (brightness * contrast)[:, None, None] * (kept + mixed)

    reduced = size_px * (1 - (1 - config.low_resolution_scale) * u[10])
    side = np.where(u[9] < config.low_resolution, np.maximum(np.rint(reduced), 1), size_px).astype(np.int64)
    sigma = np.where(u[11] < config.blur, 0.1 + (config.blur_sigma - 0.1) * u[12], 0.0)
    quality = np.where(u[13] < config.jpeg, np.rint(config.jpeg_quality + (95 - config.jpeg_quality) * u[14]), 0)
    return Augmentation(
        linear,
        shift,
        side,
        sigma,
        quality.astype(np.int64),
        colour,
        _MID_GREY * (1 - contrast),
        _boxes(config, u[15:], size_px),
    )


def identity(count: int, size_px: int) -> Augmentation:
    """Parameters that change nothing, for `count` samples."""
    zeros, ints = np.zeros(count), np.zeros(count, dtype=np.int64)
    eye2, eye3 = np.tile(np.eye(2), (count, 1, 1)), np.tile(np.eye(3), (count, 1, 1))
    box = np.zeros((count, 4), dtype=np.int64)
    return Augmentation(eye2, np.zeros((count, 2)), ints + size_px, zeros, ints, eye3, zeros, box)


def pixel_maps(parameters: Augmentation, input_px: NDArray[Any], centre: float = 0.5) -> Floats:
    """Affine maps from output to input pixels, [n, 2, 3].

    Args:
        parameters: of n samples.
        input_px: [n], sides of the stored pictures.
        centre: where a pixel's centre is, seen from its number: 0.5 if pixel 0 is centred at coordinate 0 (OpenCV),
            0 if it spans 0 .. 1 (DALI).
    """
    half = np.asarray(input_px, dtype=np.float64)[:, None] / 2  # [n, 1]
    side = parameters.side[:, None]
    linear = parameters.linear * (2 * half / side)[:, :, None]
    start = parameters.linear.sum(axis=2) * (2 * centre / side - 1)  # where output coordinate 0 goes, in -1 .. 1
    return np.concatenate([linear, (half * (start + parameters.shift + 1) - centre)[:, :, None]], axis=2)


def _boxes(config: AugmentConfig, u: Floats, size_px: int) -> Ints:
    width = size_px * config.erase_side * (0.25 + 0.75 * u[1])
    height = size_px * config.erase_side * (0.25 + 0.75 * u[2])
    left, top = u[3] * (size_px - width), u[4] * (size_px - height)
    boxes = np.rint(np.stack([left, top, left + width, top + height], axis=-1))  # [n, 4]
    return np.where((u[0] < config.erase)[:, None], boxes, 0).astype(np.int64)
