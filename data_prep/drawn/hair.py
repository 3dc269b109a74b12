"""What is around a drawn face: hair, hats, ears, neck and shoulders."""

import numpy as np

from data_prep.drawn.canvas import Canvas
from data_prep.drawn.face import Look
from data_prep.drawn.head import Head, Points
from data_prep.drawn.sketch import COS, SIN, Sketch, band, curve

_STRANDS = 12
_FINE_PX = 12.0  # unit of a head, below which strands would only blur it
_TOP = -1.2
_LONG_ROWS = np.linspace(0, 1, 9)
_LINE = np.linspace(1, -1, 13)
_SWAY = np.array([0.6, 0.85, 1.0, 1.05])


def draw_behind(canvas: Canvas, head: Head, look: Look, full: float, random: np.random.Generator) -> None:
    """Draw hair that falls behind the head, neck and shoulders; `full` is 0 where there is no hair."""
    if full and random.random() < 0.4:
        rows = -1.1 + _LONG_ROWS * (1.1 + random.uniform(0.5, 1.9))
        half = np.interp(rows, head.rows, head.widths) * full + 0.06
        half[rows > 0.3] = random.uniform(0.75, 1.05)
        half += random.uniform(0, 0.08) * np.sin(_LONG_ROWS * random.uniform(3, 12))
        shape = np.concatenate([curve(half, rows), curve(-half, rows)[::-1]])
        canvas.fill(_plane(head, shape, -0.25), look.hair * 0.8, solid=True)
    if random.random() < 0.9:
        _draw_body(canvas, head, look, random)


def _draw_body(canvas: Canvas, head: Head, look: Look, random: np.random.Generator) -> None:
    """Draw neck and shoulders; the body stands upright, whatever the head does."""
    neck, wide = random.uniform(0.4, 0.55), random.uniform(1.2, 2.0)
    sink = random.uniform(1.15, 1.5)
    unit = head.unit_px
    chin = head.seen(np.array([[0.0, 0.75, 0.1]]))[0]
    side = np.array([[-neck, -0.1], [neck, -0.1], [neck * 1.1, sink - 0.5], [-neck * 1.1, sink - 0.5]])
    canvas.fill(chin + unit * side, look.skin * random.uniform(0.62, 0.85), solid=True)
    cloth = random.uniform(10, 245) + (6.0 if random.random() < 0.5 else 60.0) * random.standard_normal(3)
    v = np.array([0.0, 0.06, 0.18, 0.4, 2.6])
    half = np.array([neck * 1.1, wide * 0.5, wide * 0.8, wide, wide * 1.08])
    start = chin + unit * np.array([0.0, sink - 0.75])
    body = np.concatenate([curve(half, v), curve(-half, v)[::-1]])
    canvas.fill(start + unit * body, cloth.clip(5, 250), solid=True)
    if random.random() < 0.6:  # a neckline
        collar = np.array([[-neck, 0.0], [neck, 0.0], [0.0, random.uniform(0.1, 0.6)]])
        canvas.fill(start + unit * collar, look.skin * random.uniform(0.75, 0.95), solid=True)


def draw_skull(canvas: Canvas, head: Head, look: Look, random: np.random.Generator) -> None:
    """Draw the ears, and the skin of the whole head."""
    if random.random() < 0.85:
        high, wide = random.uniform(0.2, 0.3), random.uniform(0.09, 0.16)
        wide *= 1 + 1.5 * abs(np.sin(head.yaw))
        edge = float(head.half_width(np.zeros(1))[0]) + 0.02
        for side in (-1, 1):
            if side * np.sin(head.yaw) > 0.25:  # turned away
                continue
            ear = _plane(head, curve(side * edge + wide * COS, 0.02 + high * SIN), -0.05)
            canvas.fill(ear, look.skin * 0.95, solid=True)
            canvas.fill(0.5 * (ear + ear.mean(0)), look.skin * 0.78)
    canvas.fill(head.outline(_TOP, 1.0), look.skin, solid=True)


def draw_hair(canvas: Canvas, head: Head, look: Look, full: float, random: np.random.Generator) -> None:
    """Draw hair on the head with its hairline, and now and then a hat."""
    if full:
        temple = random.uniform(-0.4, 0.25)
        cap = head.outline(_TOP, temple, full)
        up = -head.turn[:2, 1]
        lift = head.unit_px * random.uniform(0.0, 0.8) * (full - 0.9)
        cap = cap + np.outer((cap - cap.mean(0)) @ up > 0, up) * lift
        middle = len(cap) // 2
        canvas.fill(
            np.concatenate([cap[:middle], _hairline(head, temple, random), cap[middle:]]), look.hair, solid=True
        )
        if head.unit_px > _FINE_PX:
            _strands(canvas, head, look, random)
    if random.random() < 0.1:
        _draw_hat(canvas, head, random)


def _hairline(head: Head, temple: float, random: np.random.Generator) -> Points:
    """The lower edge of the hair over the forehead, from the viewer's right to the left, in pixels."""
    edge = float(head.half_width(np.array([temple]))[0])
    top = random.uniform(-0.8, -0.5)
    part = random.uniform(-0.9, 0.9) if random.random() < 0.4 else 0.0
    fringe = random.uniform(0, 0.07) if random.random() < 0.4 else 0.0
    line = top + (temple - top) * np.abs(_LINE) ** random.uniform(2, 7)
    line += 0.18 * part * _LINE * (1 - _LINE**2) + fringe * np.sin(_LINE * random.uniform(6, 30))
    return head.on_face(curve(_LINE * edge, line.clip(-1.1, 0.3)), 0.05)


def _strands(canvas: Canvas, head: Head, look: Look, random: np.random.Generator) -> None:
    sketch = Sketch(head)
    ends = random.uniform(-0.9, -0.72, _STRANDS)
    for u, end, tone, width in zip(
        random.uniform(-0.62, 0.62, _STRANDS),
        ends,
        random.uniform(0.6, 1.5, _STRANDS),
        random.uniform(0.01, 0.03, _STRANDS),
        strict=True,
    ):
        rows = -1.1 + (end + 1.1) * _SWAY
        sketch.line(curve(u * _SWAY, rows), (look.hair * tone + 6).clip(0, 255), width, 0.06)
    sketch.draw(canvas)


def _draw_hat(canvas: Canvas, head: Head, random: np.random.Generator) -> None:
    color = random.uniform(10, 240, 3)
    low = random.uniform(-0.7, -0.45)
    top = head.outline(_TOP, low, random.uniform(1.05, 1.25))
    up = -head.turn[:2, 1] * head.unit_px * random.uniform(0.0, 0.3)
    canvas.fill(top + up * ((top - top.mean(0)) @ up > 0)[:, None], color, solid=True)
    if random.random() < 0.5:
        u = _LINE * random.uniform(0.75, 1.3)
        upper = low - 0.05 * (1 - _LINE**2)
        brim = band(u, upper, upper + 0.08 + 0.09 * (1 - _LINE**2))
        canvas.fill(_plane(head, brim, 0.4), color * 0.8, solid=True)


def _plane(head: Head, uv: Points, z: float) -> Points:
    """Points [n, 2] of a plane at `z`, in pixels of the picture."""
    return head.seen(np.array([*uv.T, np.full(len(uv), z)]).T)
