"""Likeness of two pictures by their pixels: about 1 for copies of any size and quality, far less for other views."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from dist_train.clean.mixture import Floats
from dist_train.data.counters import Ints
from dist_train.data.pictures import PictureError, check, decode_checked
from dist_train.evaluate.embeddings import rank_slice
from dist_train.runtime.ranks import Ranks

SIDE_PX = 48
BLUR_PX = 1.0  # deviation: blocks of JPEG go, an accent or another eyebrow stays
ALIKE = 0.985
"""Correlation of the pixels from which two pictures are one. Of 427 glyphs' pictures at JPEG quality 60 one in 400 is
below; copies in LFW are from 0.988 on, frames of one scene up to 0.984."""
_PAIRS = 1 << 14  # at a time

ReadFn = Callable[[int], bytes]
"""Number of a picture -> its bytes."""


def thumbnail(data: bytes) -> Floats | None:
    """A picture as grey levels of mean 0 and length 1, float32 [SIDE_PX²]; None for what is no picture, or is even."""
    try:
        check(data)
        pixels = cv2.cvtColor(decode_checked(data), cv2.COLOR_BGR2GRAY)
    except PictureError:
        return None
    scaled = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = np.asarray(cv2.GaussianBlur(scaled, (0, 0), BLUR_PX), np.float32).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return None if length < 1 else small / np.float32(length)


def likenesses(read: ReadFn, other: ReadFn, pairs: Ints, ranks: Ranks) -> Floats:
    """Correlation of the pixels of pairs of pictures; -1 where one cannot be decoded. A collective.

    Args:
        read: gives the first picture of each pair.
        other: gives the second.
        pairs: numbers of pictures [P, 2], best with equal ones near each other.
        ranks: the processes that share the pairs.
    """
    mine = pairs[slice(*rank_slice(len(pairs), ranks.rank, ranks.world_size))]
    found = ranks.agree(lambda: np.concatenate([np.empty(0, np.float32), *_correlations(read, other, mine)]), "all")
    return np.concatenate(ranks.gather(found))


def _correlations(read: ReadFn, other: ReadFn, pairs: Ints) -> Iterator[Floats]:
    for start in range(0, len(pairs), _PAIRS):
        block = pairs[start : start + _PAIRS]
        sides = []
        for side, give in zip(block.T, (read, other), strict=True):
            numbers, at = np.unique(side, return_inverse=True)
            small = [thumbnail(give(int(number))) for number in numbers]
            # What has no thumbnail is like nothing.
            rows = np.stack([np.full(SIDE_PX**2, np.nan, np.float32) if each is None else each for each in small])
            sides.append(rows[at])
        yield np.nan_to_num((sides[0] * sides[1]).sum(axis=1), nan=-1).astype(np.float32)
