"""Light and shade of a drawn head: a lamp, hollows and humps of the face, the edge of a shadow."""

import numpy as np
from numpy.typing import NDArray

from data_prep.drawn.canvas import Canvas
from data_prep.drawn.head import FOREHEAD, Head

_POINTS = 48  # in each direction; light changes slowly
_WIDE, _HIGH = 0.85, 1.25  # half axes of a head


def light_on(canvas: Canvas, head: Head, random: np.random.Generator) -> NDArray[np.float32]:
    """Factors [m, m] over the canvas."""
    xs, ys = canvas.grid(_POINTS)
    x = (xs - head.center[0]) / head.unit_px
    y = ((ys - head.center[1]) / head.unit_px)[:, None]
    facing = np.sqrt((1 - (x / _WIDE) ** 2 - (y / _HIGH) ** 2).clip(0, 1))
    to_right, to_bottom = random.normal(0, 0.7, 2).clip(-1, 1).tolist()
    strength = random.uniform(0.1, 0.6)
    slope = 0.6 * (to_right * x / _WIDE + to_bottom * y / _HIGH)
    light = (1 - strength * (0.35 - 0.3 * facing - slope)).clip(0.35, 1.5)
    (u, v), (_, mouth), deep = head.eyes, head.mouth, random.uniform(0.08, 0.32)
    dents = np.array(  # u, v, width, height, change of light
        [
            (-u, v - 0.03, 0.2, 0.13, -1.0),
            (u, v - 0.03, 0.2, 0.13, -1.0),
            (0.0, head.nose + 0.12, 0.16, 0.07, -0.9),
            (0.0, mouth + 0.17, 0.2, 0.06, -0.8),
            (0.0, 1.0, 0.6, 0.12, -1.2),
            (0.0, 0.05, 0.07, 0.3, 0.4),
            (-0.42, 0.22, 0.2, 0.18, 0.35),
            (0.42, 0.22, 0.2, 0.18, 0.35),
            (0.0, FOREHEAD + 0.25, 0.4, 0.2, 0.4),
        ]
    )
    at = (head.on_face(dents[:, :2]) - head.center) / head.unit_px
    across = np.exp(-(((x - at[:, :1]) / dents[:, 2:3]) ** 2))  # [dents, m]
    down = np.exp(-(((y[:, 0] - at[:, 1:]) / dents[:, 3:4]) ** 2))
    light = light * (1 + deep * (down.T * dents[:, 4]) @ across)
    if random.random() < 0.12:  # the edge of a shadow across the head
        angle, place = random.uniform(0, 2 * np.pi), random.uniform(-0.5, 0.6)
        beyond = np.cos(angle) * x + np.sin(angle) * y - place
        light = light * (1 - random.uniform(0.25, 0.6) / (1 + np.exp(-beyond * random.uniform(4, 30))))
    return np.asarray(light, np.float32)
