"""A drawn photo: heads of many sizes on a background, with their boxes and five points."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.drawn.canvas import Canvas
from data_prep.drawn.face import Look, sketch_face
from data_prep.drawn.hair import draw_behind, draw_hair, draw_skull
from data_prep.drawn.head import Head, Points
from data_prep.drawn.light import light_on
from data_prep.drawn.scene import background, cover, distract, expose
from data_prep.drawn.sketch import Sketch
from data_prep.mtcnn.faces import Picture

_EMPTY = 0.12  # share of photos without a face
_TRIES = 10  # places that are tried for a head
_REACH = 1.6  # units of a head to each side that hair, hat and shoulders take
_SIDE, _ABOVE, _BELOW = 2.3, 2.0, 2.2  # units of a head around its middle that its drawing takes, without the body


@dataclass(frozen=True, slots=True)
class PhotoSpec:
    """What photos are drawn.

    Attributes:
        width: of a photo in pixels.
        height: of a photo in pixels.
        min_face: height of the smallest face in pixels.
        max_face: height of the largest; no face is higher than 0.9 of the photo.
        faces: largest number of faces in a photo.
        seed: of the set.
    """

    width: int = 320
    height: int = 240
    min_face: int = 20
    max_face: int = 300
    faces: int = 4
    seed: int = 0


class DrawnPhoto(NamedTuple):
    """A drawn photo.

    Attributes:
        jpeg: encoded.
        pixels: uint8 [height, width, 3], RGB, before it was encoded.
        boxes: float64 [n, 4]: left, top, right, bottom of the edges; pixel 0 lies between 0 and 1.
        points: float64 [n, 5, 2] in the order of `data_prep.mtcnn.faces.Faces`; 0 is the middle of pixel 0.
    """

    jpeg: bytes
    pixels: Picture
    boxes: NDArray[np.float64]
    points: NDArray[np.float64]


class Placed(NamedTuple):
    """A head in a photo, and the box of its face [4]."""

    head: Head
    box: Points


def draw_photo(spec: PhotoSpec, number: int) -> DrawnPhoto:
    """Photo `number` of a set: random choices depend on that and on the seed alone."""
    random = np.random.Generator(np.random.Philox(key=np.array([spec.seed, number], dtype=np.uint64)))
    photo = background(spec.width, spec.height, random)
    for _ in range(random.integers(0, 5)):
        distract(photo, Look.random(random).skin, random)
    placed = _places(spec, random)
    if random.random() < 0.15:  # seen from behind
        _draw(photo, _place(_head(spec, random), spec, random).head, random, faceless=True)
    for head, box in placed:
        look = _draw(photo, head, random)
        if random.random() < 0.1:
            cover(photo, box, look.skin, random)
    photo = expose(photo, random)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(60, 96))]
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    boxes = np.array([each.box for each in placed]).reshape(-1, 4)
    points = np.array([each.head.five_points() for each in placed]).reshape(-1, 5, 2) - 0.5
    return DrawnPhoto(jpeg, photo, boxes, points)


def _head(spec: PhotoSpec, random: np.random.Generator) -> Head:
    largest = max(spec.min_face, min(spec.max_face, int(0.9 * spec.height)))
    return Head.random(random, float(np.exp(random.uniform(np.log(spec.min_face), np.log(largest)))))


def _place(head: Head, spec: PhotoSpec, random: np.random.Generator) -> Placed:
    """The head, given at 0, 0, with the middle of its face anywhere in the photo."""
    box = head.box()
    move = random.uniform(0, 1, 2) * (spec.width, spec.height) - (box[:2] + box[2:]) / 2
    return Placed(head.at(move), box + np.tile(move, 2))


def _places(spec: PhotoSpec, random: np.random.Generator) -> list[Placed]:
    """Heads in the order in which they are drawn: large ones first, and no later one covers an earlier face."""
    count = 0 if random.random() < _EMPTY else 1 + int(spec.faces * random.random() ** 1.3)
    placed: list[Placed] = []
    for head in sorted((_head(spec, random) for _ in range(count)), key=lambda head: -head.unit_px):
        for _ in range(_TRIES):
            here = _place(head, spec, random)
            if _fits(here, placed, spec):
                placed.append(here)
                break
    return placed


def _fits(here: Placed, placed: list[Placed], spec: PhotoSpec) -> bool:
    """Whether at least 0.8 of the face is in the photo, and all of earlier faces stays to be seen."""
    left, top, right, bottom = here.box.tolist()
    seen = max(0.0, min(right, spec.width) - max(left, 0)) * max(0.0, min(bottom, spec.height) - max(top, 0))
    if seen < 0.8 * (right - left) * (bottom - top):
        return False
    (x, y), unit = here.head.center.tolist(), here.head.unit_px
    for first, _, third, fourth in (other.box.tolist() for other in placed):
        beside = x + _REACH * unit <= first or x - _REACH * unit >= third
        if not beside and y - _REACH * unit < fourth:  # the body reaches down to any depth
            return False
    return True


def _draw(photo: Picture, head: Head, random: np.random.Generator, faceless: bool = False) -> Look:
    """Draw a head with its body; returns its colours."""
    look = Look.random(random)
    unit = head.unit_px
    body = unit * random.uniform(0.0, 6.0)
    left, top = np.floor(head.center - unit * np.array([_SIDE, _ABOVE])).astype(int).tolist()
    right, bottom = np.ceil(head.center + unit * np.array([_SIDE, _BELOW])).astype(int).tolist()
    fine = 3 if unit < 17 else 2 if unit < 35 else 1
    canvas = Canvas(photo, left, top, right, bottom + int(body), fine)
    if canvas.empty:
        return look
    full = 0.0 if random.random() < 0.08 and not faceless else random.uniform(1.02, 1.25)
    draw_behind(canvas, head, look, full, random)
    if faceless:
        look = Look(look.hair, look.hair, look.hair)
    draw_skull(canvas, head, look, random)
    if not faceless:
        sketch = Sketch(head)
        sketch_face(sketch, look, random)
        sketch.draw(canvas)
    draw_hair(canvas, head, look, full, random)
    canvas.shade(light_on(canvas, head, random))
    canvas.finish()
    return look
