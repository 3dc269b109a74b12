"""A drawn face: eyes, brows, nose, mouth, beard, and what may cover them."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from data_prep.drawn.canvas import Color
from data_prep.drawn.head import NOSE_RISE
from data_prep.drawn.sketch import COS, SIN, Sketch, band, curve, ellipse

_SKINS = np.array(
    [
        (246.0, 216, 196),
        (232, 190, 164),
        (214, 164, 130),
        (188, 132, 98),
        (150, 100, 70),
        (112, 72, 50),
        (74, 48, 36),
    ]
)
_HAIRS = np.array(
    [
        (20.0, 16, 14),
        (38, 26, 20),
        (70, 46, 30),
        (104, 70, 42),
        (160, 118, 70),
        (206, 172, 116),
        (140, 60, 30),
        (150, 148, 146),
    ]
)
_IRISES = np.array([(60.0, 38, 22), (92, 62, 36), (70, 92, 110), (84, 110, 82), (110, 130, 150), (30, 22, 18)])
_DARK = np.array([18.0, 12, 12])
_GLINT = np.full(3, 235.0)
_FINE_PX = 14.0  # unit of a head, below which fine lines would only blur it
_LID = np.linspace(0, np.pi, 9)
_LID_U, _LID_V = np.cos(_LID), np.sin(_LID)  # 1 .. -1, 0 .. 1 .. 0
_SIDES = (-1, 1)
_ALONG = np.linspace(-1, 1, 11)
_BOW = 1 - _ALONG**2


@dataclass(frozen=True, slots=True)
class Look:
    """Colours of a head, RGB.

    Attributes:
        skin: of the face.
        hair: of hair, brows and beard.
        lips: of the mouth.
    """

    skin: Color
    hair: Color
    lips: Color

    @classmethod
    def random(cls, random: np.random.Generator) -> Self:
        """Colours of a person."""
        at = random.uniform(0, len(_SKINS) - 1)
        low = int(at)
        skin = _SKINS[low] + (at - low) * (_SKINS[min(low + 1, len(_SKINS) - 1)] - _SKINS[low])
        skin = skin * random.normal(1, 0.05, 3) * random.uniform(0.85, 1.1)
        hair = _HAIRS[random.integers(len(_HAIRS))] * random.uniform(0.7, 1.3) + random.normal(0, 4, 3)
        if random.random() < 0.05:
            hair = random.uniform(20, 230, 3)
        lips = skin * (0.86, 0.6, 0.6) + random.normal(0, 8, 3)
        if random.random() < 0.2:
            lips = lips * (1.0, 0.6, 0.65)
        return cls(skin.clip(8, 250), hair.clip(4, 250), lips.clip(8, 250))


def sketch_face(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    """Add eyes, brows, nose and mouth, now and then a beard, glasses, or a cloth over the mouth."""
    if random.random() < 0.22:
        _beard(sketch, look, random)
    _mouth(sketch, look, random)
    _nose(sketch, look, random)
    _eyes(sketch, look, random)
    _brows(sketch, look, random)
    if random.random() < 0.04:
        _cloth(sketch, random)
    if random.random() < 0.18:
        _glasses(sketch, random)


def _eyes(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    u, v = sketch.head.eyes
    wide = random.normal(0.155, 0.012)
    closed = random.random() < 0.06
    opening = 0.015 if closed else min(0.1, max(0.025, random.normal(0.062, 0.014)))
    slant = random.normal(0.0, 0.025)
    iris = _IRISES[random.integers(len(_IRISES))] * random.uniform(0.6, 1.2)
    gaze_u, gaze_v = random.normal(0, 0.03, 2).clip(-0.06, 0.06).tolist()
    white = random.uniform(175, 240) * (0.75 + 0.25 * look.skin / 255)
    lash = look.hair * 0.3 + _DARK * 0.5
    lash_width = random.uniform(0.015, 0.045)
    fold = random.uniform(0.04, 0.075)
    fine = sketch.head.unit_px > _FINE_PX
    for side in _SIDES:
        x = side * u + wide * _LID_U
        tilt = v - slant * side * _LID_U
        upper, lower = tilt - 1.15 * opening * _LID_V, tilt + 0.85 * opening * _LID_V
        if not closed:
            sketch.fill(band(x, upper, lower), white)
            at = side * u + gaze_u, v + 0.3 * gaze_v - 0.1 * opening
            sketch.fill(ellipse(*at, 0.072, min(0.075, 1.05 * opening + 0.01)), iris)
            sketch.fill(ellipse(*at, 0.034, min(0.034, opening)), _DARK)
            if fine:
                sketch.fill(ellipse(at[0] - 0.02, at[1] - 0.02, 0.014, 0.014), _GLINT)
        sketch.line(curve(x, lower if closed else upper), lash, lash_width)
        if fine:
            sketch.line(curve(x, lower), look.skin * 0.62, 0.5 * lash_width)
            sketch.line(curve(x, upper - fold), look.skin * 0.68, 0.6 * lash_width)


def _brows(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    u, v = sketch.head.eyes
    thick = random.uniform(0.025, 0.075)
    above = random.normal(0.2, 0.025)
    arch, tilt = random.uniform(0.0, 0.08), random.normal(0, 0.04)
    strength = random.uniform(0.45, 1.0)
    color = strength * look.hair * 0.9 + (1 - strength) * look.skin * 0.8
    line = v - above - arch * _BOW + tilt * _ALONG
    half = thick * (0.52 - 0.25 * _ALONG.clip(0, 1))
    for side in _SIDES:
        sketch.fill(band(side * (u + 0.02 + 0.22 * _ALONG), line - half, line + half), color)


def _nose(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    tip, wide = sketch.head.nose, random.normal(0.15, 0.02)
    side = 1 if random.random() < 0.5 else -1
    bridge = sketch.head.eyes[1] + 0.02
    # The side in shadow, and the tip, each as far above the face as a nose is there.
    edge = np.array([[0.05 * side, bridge], [0.07 * side, tip - 0.12], [wide * side, tip + 0.06], [0.03 * side, tip]])
    sketch.fill(edge, look.skin * random.uniform(0.8, 0.93), np.array([0.02, 0.1, 0.03, NOSE_RISE]))
    light = (look.skin * random.uniform(1.0, 1.08)).clip(0, 255)
    sketch.fill(ellipse(0.0, tip - 0.01, 0.085, 0.075), light, NOSE_RISE - 0.02)
    for each in _SIDES:
        wing = each * (0.05 + wide * np.array([0.15, 0.55, 0.75, 0.68]))
        sketch.line(curve(wing, tip + np.array([0.09, 0.1, 0.05, -0.02])), look.skin * 0.62, 0.022, 0.06)
        sketch.fill(ellipse(each * 0.068, tip + 0.07, 0.034, 0.018), look.skin * 0.3, 0.08)


def _mouth(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    half, v = sketch.head.mouth
    smile = random.normal(0.02, 0.04)
    opening = max(0.0, random.normal(-0.02, 0.07))
    upper, lower = random.uniform(0.04, 0.075), random.uniform(0.05, 0.1)
    u = half * _ALONG
    middle = v + smile * 1.3 * _BOW  # the corners stay where the five points say
    top = middle - upper * _BOW**0.7 * (1 - 0.25 * np.exp(-((_ALONG / 0.18) ** 2)))
    sketch.fill(band(u, top, middle + (lower + opening) * _BOW**0.8), look.lips, 0.04)
    if opening <= 0.02:
        sketch.line(curve(u, middle), look.lips * 0.5, random.uniform(0.015, 0.035), 0.04)
        return
    dark = np.array([60.0, 24, 24]) * random.uniform(0.6, 1.2)
    sketch.fill(band(u * 0.85, middle - 0.01 * _BOW, middle + opening * _BOW), dark, 0.03)
    if random.random() < 0.75:
        teeth = np.array([236.0, 230, 220]) * random.uniform(0.8, 1.0)
        sketch.fill(band(u * 0.78, middle, middle + min(0.05, opening) * _BOW), teeth, 0.03)


def _beard(sketch: Sketch, look: Look, random: np.random.Generator) -> None:
    half, v = sketch.head.mouth
    dense = random.uniform(0.35, 0.95)
    color = dense * look.hair + (1 - dense) * look.skin
    if random.random() < 0.75:
        high = random.uniform(-0.05, 0.4)
        upper = high + (v + 0.12 - high) * _BOW**0.5
        rows = np.linspace(high, 1.0, 7)
        edge = 0.98 * sketch.head.half_width(rows)
        rim = np.concatenate([curve(_ALONG * edge[0], upper), curve(edge, rows), curve(-edge, rows)[::-1]])
        sketch.fill(rim, color)
    if random.random() < 0.75:
        top = v - 0.1 - 0.05 * _BOW
        sketch.fill(band(_ALONG * (half + 0.05), top, top + 0.08), color, 0.04)


def _cloth(sketch: Sketch, random: np.random.Generator) -> None:
    """A cloth over nose and mouth."""
    rows = np.linspace(sketch.head.nose - 0.1, 0.97, 6)
    edge = 0.95 * sketch.head.half_width(rows)
    color = random.uniform(20, 240, 3) if random.random() < 0.5 else np.array([170.0, 205, 225])
    sketch.fill(np.concatenate([curve(edge, rows), curve(-edge, rows)[::-1]]), color, 0.1)


def _glasses(sketch: Sketch, random: np.random.Generator) -> None:
    u, v = sketch.head.eyes
    wide, high = random.uniform(0.2, 0.27), random.uniform(0.13, 0.22)
    power = random.uniform(0.5, 1.0)  # 1: round, less: with corners
    frame = random.uniform(10, 90, 3) if random.random() < 0.8 else random.uniform(60, 220, 3)
    dark = random.random() < 0.3
    width = random.uniform(0.015, 0.06)
    for side in _SIDES:
        x = side * (u + 0.02) + wide * np.sign(COS) * np.abs(COS) ** power
        rim = curve(x, v + 0.02 + high * np.sign(SIN) * np.abs(SIN) ** power)
        if dark:
            sketch.fill(rim, frame * 0.5, 0.08)
        sketch.line(np.concatenate([rim, rim[:1]]), frame, width, 0.08)
        sketch.line(np.array([[side * (u + wide), v - 0.02], [side * 0.72, v]]), frame, width, 0.04)
    sketch.line(np.array([[wide - u, v], [u - wide, v]]), frame, width, 0.12)
