"""All in a drawn photo that is no face: background, things that may be taken for faces, covers, camera."""

import cv2
import numpy as np

from data_prep.drawn.canvas import Color
from data_prep.drawn.head import Points
from data_prep.drawn.sketch import COS, SIN, ellipse
from data_prep.mtcnn.faces import Picture

_SHIFT = 4  # binary places of coordinates


def background(width: int, height: int, random: np.random.Generator) -> Picture:
    """A texture of a few scales, with shapes on it: [height, width, 3]."""
    colors = (_color(random) + random.normal(0, random.uniform(5, 50), (3, 4, 3))).clip(0, 255).astype(np.uint8)
    pixels = cv2.resize(colors, (width, height), interpolation=cv2.INTER_LINEAR)
    half = (width + 1) // 2, (height + 1) // 2
    texture = np.full(half[::-1], 128, np.float32)
    for least, most in ((3, 9), (10, 40), (40, 120)):
        cells = int(random.integers(least, most))
        rough = random.uniform(0, 20) * random.standard_normal((cells * height // width + 1, cells), np.float32)
        texture += cv2.resize(rough, half, interpolation=cv2.INTER_LINEAR)
    grey = cv2.resize(cv2.convertScaleAbs(texture), (width, height), interpolation=cv2.INTER_LINEAR)
    texture_rgb = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    photo = np.asarray(cv2.addWeighted(pixels, 1.0, texture_rgb, 1.0, -128), np.uint8)
    for _ in range(random.integers(0, 14)):
        _shape(photo, random)
    if random.random() < 0.3:
        photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), random.uniform(0.8, 3)), np.uint8)
    return photo


def _color(random: np.random.Generator) -> Color:
    grey, spread = random.uniform(15, 235), 8.0 if random.random() < 0.5 else 45.0
    return np.asarray((grey + spread * random.standard_normal(3)).clip(0, 255), np.float64)


def _fill(photo: Picture, points: Points, color: Color) -> None:
    corners = np.round(points.clip(-9999, 9999) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(photo, [corners], color.tolist(), cv2.LINE_AA, _SHIFT)


def _oval(at: Points, wide: float, high: float) -> Points:
    return ellipse(float(at[0]), float(at[1]), wide, high)


def _line(photo: Picture, points: Points, color: Color, width: float, closed: bool = False) -> None:
    corners = np.round(points.clip(-9999, 9999) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(photo, [corners], closed, color.tolist(), max(1, round(width)), cv2.LINE_AA, _SHIFT)


def _shape(photo: Picture, random: np.random.Generator) -> None:
    """A wall, a bar, a disc or a cable."""
    height, width = photo.shape[:2]
    at = random.uniform(0, 1, 2) * (width, height)
    size = height * random.uniform(0.05, 0.6) * random.uniform(0.3, 1, 2)
    kind = random.integers(4)
    if kind == 0:
        corners = at + size * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
        _fill(photo, corners + random.normal(0, 4, (4, 2)), _color(random))
    elif kind == 1:
        _fill(photo, at + size * random.uniform(-1, 1, (random.integers(3, 7), 2)), _color(random))
    elif kind == 2:
        _fill(photo, _oval(at, *size), _color(random))
    else:
        _line(photo, random.uniform(0, 1, (3, 2)) * (width, height), _color(random), random.uniform(1, 8))


def distract(photo: Picture, skin: Color, random: np.random.Generator) -> None:
    """Draw something of a face's colours and parts that is no face."""
    height, width = photo.shape[:2]
    at = random.uniform(0, 1, 2) * (width, height)
    size = height * float(np.exp(random.uniform(np.log(0.04), np.log(0.3))))
    _DISTRACTORS[random.integers(len(_DISTRACTORS))](photo, at, size, skin, random)


def _rings(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    for part in np.linspace(1, 0.2, random.integers(2, 6)):
        color = _color(random) if random.random() < 0.7 else skin
        _fill(photo, _oval(at, size * part, size * part * random.uniform(0.8, 1.2)), color)


def _single_eye(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    if random.random() < 0.6:
        _fill(photo, at + 1.5 * size * random.uniform(0.7, 1, (16, 1)) * np.array([COS, SIN]).T, skin)
    _fill(photo, _oval(at, size, size * random.uniform(0.3, 0.6)), np.full(3, random.uniform(170, 245)))
    _fill(photo, _oval(at, 0.35 * size, 0.35 * size), _color(random) * 0.6)
    _fill(photo, _oval(at, 0.15 * size, 0.15 * size), np.full(3, 15.0))


def _blobs(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    """A patch of skin with spots in no order."""
    if random.random() < 0.7:
        _fill(photo, at + size * random.uniform(0.7, 1.1, (16, 1)) * np.array([COS, SIN]).T, skin)
    for place in at + random.uniform(-0.8, 0.8, (random.integers(2, 9), 2)) * size:
        dark = skin * random.uniform(0.1, 0.9)
        _fill(photo, _oval(place, *(size * random.uniform(0.05, 0.3, 2))), dark)


def _stripes(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    along = random.normal(0, 1, 2)
    along /= np.hypot(*along) + 1e-6
    across = np.array([-along[1], along[0]])
    color = skin * random.uniform(0.2, 1) if random.random() < 0.5 else _color(random)
    for step in np.linspace(-1, 1, random.integers(3, 10)):
        middle = at + step * size * across
        _line(photo, np.array([middle - size * along, middle + size * along]), color, 0.1 * size)


def _hand(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    turn = random.uniform(0, 2 * np.pi)
    _fill(photo, _oval(at, 0.5 * size, 0.55 * size), skin)
    for finger in turn + np.linspace(-0.8, 0.8, 5):
        tip = at + size * random.uniform(0.9, 1.3) * np.array([np.cos(finger), np.sin(finger)])
        _line(photo, np.array([at, tip]), skin * random.uniform(0.85, 1.0), 0.25 * size)


def _scribble(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    """Signs like writing, dark on light or skin."""
    paper = skin if random.random() < 0.3 else _color(random)
    _fill(photo, at + size * np.array([[-1.4, -0.8], [1.4, -0.8], [1.4, 0.8], [-1.4, 0.8]]), paper)
    for row in np.linspace(-0.6, 0.6, random.integers(2, 5)):
        places = np.linspace(-1.2, 1.2, random.integers(8, 20))
        line = np.array([places, row + random.normal(0, 0.08, len(places))]).T
        _line(photo, at + size * line, paper * 0.4, 0.05 * size)


def _egg(photo: Picture, at: Points, size: float, skin: Color, random: np.random.Generator) -> None:
    """The form of a head with nothing in it, or a mouth at most."""
    _fill(photo, _oval(at, 0.75 * size, size), skin)
    if random.random() < 0.4:
        _fill(photo, ellipse(float(at[0]), float(at[1]) + 0.5 * size, 0.3 * size, 0.1 * size), skin * (0.8, 0.5, 0.5))
    if random.random() < 0.5:
        top = np.array([COS, -np.abs(SIN)]).T * (0.8 * size, 1.05 * size)
        _fill(photo, at + top - (0, 0.2 * size), _color(random) * 0.5)


_DISTRACTORS = (_rings, _single_eye, _blobs, _stripes, _hand, _scribble, _egg)


def cover(photo: Picture, box: Points, skin: Color, random: np.random.Generator) -> None:
    """Cover up to a third of a face from one of its sides: by a hand, a bar, or a board."""
    left, top, right, bottom = box.tolist()
    size = box[2:] - box[:2]
    share = random.uniform(0.1, 0.33)
    side = random.integers(3)
    color = skin * random.uniform(0.7, 1.0) if random.random() < 0.3 else _color(random)
    bulge = random.normal(0, 0.06, (4, 2)) * size
    if side == 0:
        corners = [[left - 0.3 * size[0], bottom - share * size[1]], [right + 0.3 * size[0], bottom - share * size[1]]]
        corners += [[right + 0.3 * size[0], bottom + 0.4 * size[1]], [left - 0.3 * size[0], bottom + 0.4 * size[1]]]
    else:
        start, end = (left - 0.6 * size[0], left + share * size[0])
        if side == 2:
            start, end = right - share * size[0], right + 0.6 * size[0]
        corners = [[start, top - 0.3 * size[1]], [end, top - 0.3 * size[1]], [end, bottom], [start, bottom]]
    _fill(photo, np.array(corners) + bulge, color)


def expose(photo: Picture, random: np.random.Generator) -> Picture:
    """The photo as a camera takes it: out of focus or shaken, too dark or light, coloured, grey, with noise."""
    blur = random.random()
    if blur < 0.3:
        photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), random.uniform(0.4, 1.4)), np.uint8)
    elif blur < 0.36:
        length = int(random.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        end = random.integers(0, length, 2).tolist()
        cv2.line(kernel, end, [length - 1 - end[0], length - 1 - end[1]], 1.0)
        photo = np.asarray(cv2.filter2D(photo, -1, kernel / max(1.0, float(kernel.sum()))), np.uint8)
    if random.random() < 0.08:
        photo = np.asarray(cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    levels = np.linspace(0, 1, 256)[:, None] ** random.uniform(0.7, 1.45)
    gain = random.uniform(0.75, 1.12) * random.normal(1, 0.05, 3)
    table = (255 * levels * gain + random.uniform(-8, 14)).clip(0, 255).astype(np.uint8)
    photo = np.asarray(cv2.LUT(photo, table.reshape(256, 1, 3)), np.uint8)
    noise = random.uniform(0, 0.16)  # of grains between -128 and 127
    grains = np.frombuffer(random.bytes(photo.size), np.uint8).reshape(photo.shape)
    return np.asarray(cv2.addWeighted(photo, 1.0, grains, noise, -128 * noise), np.uint8)
