"""Pictures of evaluation sets: decoded, scaled to what a network takes, and stacked as its input."""

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.data.levels import normalise
from dist_train.data.pictures import PictureError, check, decode_checked
from dist_train.errors import WorkError

logger = logging.getLogger(__name__)

LoadFn = Callable[[int], np.ndarray]
"""Number of a picture -> uint8 [S, S, 3], red first; called from several threads."""


def _decode(data: bytes, image_size: int, name: str) -> tuple[np.ndarray, int, int]:
    """The picture as uint8 [S, S, 3], red first, and its own height and width before scaling.

    Raises:
        WorkError: not a picture, cut off, or too large.
    """
    try:
        check(data)
        picture = decode_checked(data)
    except PictureError as error:
        raise WorkError(f"{name}: {error}") from error
    height, width = picture.shape[:2]
    if (height, width) != (image_size, image_size):
        shrinks = height > image_size
        picture = cv2.resize(
            picture, (image_size, image_size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), height, width


_scaled: set[tuple[str, int]] = set()
"""Names and sizes that were told of: a run evaluates the same sets again and again."""


def decoding(read: Callable[[int], bytes], image_size: int, name: str) -> LoadFn:
    """A loader of pictures whose encoded bytes `read` gives; the first rank says once that it scales them."""

    def load(number: int) -> np.ndarray:
        picture, height, width = _decode(read(number), image_size, f"{name}, picture {number}")
        if (height, width) != (image_size, image_size) and (name, image_size) not in _scaled:
            _scaled.add((name, image_size))
            if not dist.is_initialized() or dist.get_rank() == 0:
                logger.warning(
                    "%s: pictures of %d x %d px are scaled to the %d px that the model takes; figures of a model for "
                    "their own size are not comparable",
                    name,
                    width,
                    height,
                    image_size,
                )
        return picture

    return load


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures uint8 [S, S, 3] -> float32 [B, 3, S, S] in [-1, 1]."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [B, S, S, 3] -> [B, 3, S, S]
    return normalise(batch, torch.empty(batch.shape))
