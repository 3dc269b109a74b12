"""The pixels of photos with known faces."""

import os

from data_prep.decode import decode
from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.mtcnn.faces import Picture
from data_prep.sources.folder import read_file
from dist_train.data.reject import Reject


def open_photo(photo: AnnotatedPhoto) -> tuple[Picture, AnnotatedPhoto] | Reject:
    """The pixels [height, width, 3] of a photo, RGB, upright, and its faces; faces outside of the picture are ignored.

    A photo that cannot be read or decoded gives the reason why not.
    """
    data = read_file(os.fsencode(photo.path))
    if isinstance(data, Reject):
        return data
    decoded = decode(data)
    if isinstance(decoded, Reject):
        return decoded
    height, width = decoded.pixels.shape[:2]
    return decoded.pixels, within(photo, width, height)


def outside(photo: AnnotatedPhoto, opened: AnnotatedPhoto) -> int:
    """How many faces of a photo are ignored because of its pixels; `opened` is the photo as `open_photo` gives it."""
    return int((opened.ignored & ~photo.ignored).sum())


def within(photo: AnnotatedPhoto, width: int, height: int) -> AnnotatedPhoto:
    """The photo with those faces ignored, too, of which no pixel is in a picture of this size.

    Boxes that reach beyond the picture stay as they are: the face that is cut off is there.
    """
    left, top, right, bottom = photo.boxes.T
    outside = (left >= width) | (top >= height) | (right <= 0) | (bottom <= 0)
    return photo._replace(ignored=photo.ignored | outside) if outside.any() else photo
