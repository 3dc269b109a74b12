"""A photo as it is searched for faces: shrunk where it is large, and what was found brought back to its own pixels."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.decode import Photo
from data_prep.mtcnn.faces import Faces, Picture

T = TypeVar("T")
DECODED_PX = 32_000_000  # pixels of the decoded photos in memory at one time, 3 bytes each


def in_groups(items: Iterable[T], pixels: Callable[[T], int], most: int | None = None) -> Iterator[list[T]]:
    """Items in order, in groups that may be in memory together.

    Args:
        items: made as they are asked for.
        pixels: those of an item; a group ends where it has `DECODED_PX` of them.
        most: items of a group; None: any number.
    """
    group: list[T] = []
    held = 0
    for item in items:
        group.append(item)
        held += pixels(item)
        if held >= DECODED_PX or len(group) == most:
            yield group
            group, held = [], 0
    if group:
        yield group


def least_side(longer_side_px: int | None, image_size: int, min_face_px: float) -> int | None:
    """The side below which a photo may not be decoded: the smallest face is no smaller than its crop. None: any."""
    return None if longer_side_px is None else math.ceil(longer_side_px * max(1, image_size / min_face_px))


def shrunk(pixels: Picture, longer_side_px: int | None) -> Picture:
    """A picture [H, W, 3] whose longer side is at most `longer_side_px`; None: as it is."""
    height, width = pixels.shape[:2]
    share = (longer_side_px or math.inf) / max(height, width)
    if share >= 1:
        return pixels
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def in_photo(faces: Faces, photo: Photo, searched: Picture) -> Faces:
    """Faces that were found in the `searched` form of a photo, in the pixels of the photo as it was decoded."""
    height, width = photo.pixels.shape[:2]
    grown = np.array([width / searched.shape[1], height / searched.shape[0]], np.float32)  # x, y
    return Faces(faces.boxes * np.tile(grown, 2), faces.scores, faces.landmarks * grown)


def rounded(pixels: NDArray[np.floating]) -> list[float]:
    """Places in pixels, to two digits, as records and answers give them."""
    return [round(float(value), 2) for value in pixels]
