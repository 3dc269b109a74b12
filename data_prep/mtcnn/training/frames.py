"""What a network's answers mean: which region of a photo a crop shows, and where in it a face is.

A region is [left, top, right, bottom] in pixels from 0, right and bottom exclusive, a square of any size that may reach
beyond its photo. The networks' own boxes count from 1 and are inclusive, as in the authors' programs, and P-Net's begin
one of its pixels late; offsets are therefore taken as the detector will apply them, so that the answer which is learnt
gives the very box of the face.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.mtcnn.pyramid import CELL

Floats = NDArray[np.float64]

_FROM_ONE = np.array([1.0, 1.0, 0.0, 0.0])


def regions_of(boxes: NDArray[np.float32]) -> Floats:
    """The regions [n, 4] that the detector's candidates [n, 4] show."""
    regions: Floats = boxes.astype(np.float64) - _FROM_ONE
    return regions


def boxes_of(regions: Floats) -> Floats:
    """The detector's candidates [n, 4] that show these regions [n, 4]."""
    boxes: Floats = regions + _FROM_ONE
    return boxes


def offsets(network: str, regions: Floats, faces: Floats) -> Floats:
    """What a network should answer for the box of a face.

    Args:
        network: `pnet`, `rnet` or `onet`.
        regions: [n, 4], what it sees.
        faces: [n, 4], the boxes of the faces in the form of regions.

    Returns:
        [n, 4], in units of the box that the detector adds them to.
    """
    start = boxes_of(regions)
    if (
        network == "pnet"
    ):  # windows of `CELL` pixels at a scale; their boxes go from the first pixel's end to the last's
        start = regions.copy()
        start[:, :2] += (regions[:, 2:] - regions[:, :2]) / CELL
        size = start[:, 2:] - start[:, :2]
    else:
        size = regions[:, 2:] - regions[:, :2]
    goal = faces if network == "onet" else boxes_of(faces)  # O-Net's boxes are the detector's result
    found: Floats = (goal - start) / np.tile(size, 2)
    return found


def positions(regions: Floats, points: Floats) -> Floats:
    """Five points [n, 5, 2] in units of their regions [n, 4], as the networks answer them."""
    found: Floats = (points - regions[:, None, :2]) / (regions[:, None, 2:] - regions[:, None, :2])
    return found


def mirrored(boxes: Floats, width: int) -> Floats:
    """Boxes [n, 4] as they are in the mirror image of a photo of this width."""
    left, top, right, bottom = boxes.T
    return np.stack([width - right, top, width - left, bottom], 1)


def mirrored_regions(regions: Floats, width: int) -> Floats:
    """Regions [n, 4] in the mirror image of a photo of this width, for which the detector would cut the mirrored crops.

    A crop is cut at whole pixels, at or to the left of the edges of its region (`boxes.pixels`). The mirrored region
    would lie to the left of the mirrored crop instead; so only the whole pixels are mirrored, the fractions stay.
    """
    whole = np.floor(regions)
    found: Floats = mirrored(whole, width) + (regions - whole)
    return found


def mirrored_points(points: Floats, width: int) -> Floats:
    """Five points [n, 5, 2] as they are in the mirror image of a photo of this width; 0 is the middle of a pixel."""
    found: Floats = points[:, [1, 0, 2, 4, 3]] * [-1.0, 1.0] + [width - 1.0, 0.0]
    return found
