"""Whose left and right the five points of faces are: the viewer's, as they should be, or by mistake the subject's."""

import numpy as np
from numpy.typing import NDArray

_LEFT, _RIGHT = [0, 3], [1, 4]  # eye and corner of the mouth, in the order of `data_prep.mtcnn.faces.Faces`


def exchanged_sides(points: NDArray[np.floating]) -> str:
    """What to say of faces [n, 5, 2] most of which have left and right exchanged; empty where that is not so.

    A head has to be turned by more than a quarter for its eyes to change places in the picture, which few are. Faces
    with unknown points, NaN, are passed over.
    """
    known = points[np.isfinite(points).all((1, 2))]
    eyes, mouths = (known[:, _LEFT, 0] > known[:, _RIGHT, 0]).sum(0).tolist()
    if 2 * max(eyes, mouths) <= len(known):
        return ""
    return (
        f"of {len(known):,} faces with five points {eyes:,} have the left eye to the right of the right one, and "
        f"{mouths:,} the left corner of the mouth; expected left and right as the viewer sees them, left_eye_x below "
        "right_eye_x in an upright photo: exchange left_eye and right_eye, left_mouth and right_mouth, unless the "
        "photos stand on their heads"
    )
