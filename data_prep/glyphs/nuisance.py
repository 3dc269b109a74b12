"""Nuisances that make a glyph hard to recognise; seeded, so that a picture always gets the same ones."""

from dataclasses import dataclass

import cv2
import numpy as np

MIN_CONTRAST = 155
"""Grey levels between ink and paper that are left at difficulty 1."""


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """Size and difficulty of the pictures.

    Attributes:
        image_size: side in pixels.
        difficulty: scales every nuisance; 0 leaves a centred black glyph on white.
        jpeg_quality: highest quality; the lowest falls by 25 with difficulty 1.
        seed: of the set.
    """

    image_size: int
    difficulty: float
    jpeg_quality: int
    seed: int


def picture(mask: np.ndarray, em_px: int, spec: PictureSpec, key: tuple[int, int, int]) -> bytes:
    """A JPEG of a glyph with nuisances.

    Args:
        mask: clean coverage, uint8 [h, w].
        em_px: size of the em square at which the mask was drawn, in pixels.
        spec: size and difficulty.
        key: (character, font, view); random choices depend on key and seed alone.
    """
    character, font, view = key
    # Philox takes a key of 128 bits: the seed, and the numbers of character, font and view.
    word = (character << 40) | (font << 24) | view
    random = np.random.Generator(np.random.Philox(key=np.array([spec.seed, word], dtype=np.uint64)))
    ink = _place(_stroke(mask, spec, random), em_px, spec, random)
    ink = _occlude(ink, spec, random)
    levels = _colour(ink, spec, random)
    if random.random() < 0.3 * spec.difficulty:
        sigma = random.uniform(0.15, 0.8) * spec.difficulty * spec.image_size / 112
        levels = cv2.GaussianBlur(levels, (0, 0), sigma)
    noise = random.uniform(0, 11) * spec.difficulty
    levels = levels + random.standard_normal(levels.shape, dtype=np.float32) * noise
    quality = int(spec.jpeg_quality - random.uniform(0, 25) * spec.difficulty)
    encoded = cv2.imencode(
        ".jpg", np.clip(levels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, max(10, quality)]
    )
    return encoded[1].tobytes()


def _stroke(mask: np.ndarray, spec: PictureSpec, random: np.random.Generator) -> np.ndarray:
    """The mask with thicker or thinner strokes, never so thin that the glyph breaks up."""
    choice, size = random.random(), 1 + random.integers(1, 3)
    padded = cv2.copyMakeBorder(mask, 4, 4, 4, 4, cv2.BORDER_CONSTANT)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(size), int(size)))
    if choice < 0.15 * spec.difficulty:
        return cv2.dilate(padded, kernel)
    if choice < 0.25 * spec.difficulty:
        thin = cv2.erode(padded, kernel)
        if int(thin.sum()) > 0.5 * int(padded.sum()):
            return thin
    return padded


def _place(mask: np.ndarray, em_px: int, spec: PictureSpec, random: np.random.Generator) -> np.ndarray:
    """Scale, rotation, shift and perspective in one warp: ink coverage float32 [S, S] in 0..1."""
    height, width = mask.shape
    size, hard = spec.image_size, spec.difficulty
    fitted = 0.66 * size / em_px
    scale = min(fitted, 0.85 * size / max(height, width)) * np.exp(random.uniform(-0.15, 0.09) * hard)
    angle = np.deg2rad(random.uniform(-9, 9) * hard)
    stretch = np.exp(random.uniform(-0.06, 0.06) * hard)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([scale * stretch, scale / stretch])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array([width, height]) / 2
    placed = corners @ matrix.T + size / 2 + random.uniform(-0.045, 0.045, 2) * size * hard
    placed += random.uniform(-0.025, 0.025, (4, 2)) * size * hard
    source = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    warp = cv2.getPerspectiveTransform(source, placed.astype(np.float32))
    # Large masks are halved first: bilinear sampling alone would lose thin strokes.
    if scale < 0.6:
        mask = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        warp = warp @ np.diag([width / mask.shape[1], height / mask.shape[0], 1.0])
    warped = cv2.warpPerspective(mask, warp, (size, size), flags=cv2.INTER_LINEAR)
    return warped.astype(np.float32) / 255


def _occlude(ink: np.ndarray, spec: PictureSpec, random: np.random.Generator) -> np.ndarray:
    """The ink with strokes drawn across it, or a patch wiped out."""
    size = spec.image_size
    if random.random() < 0.15 * spec.difficulty:
        ends = random.integers(0, size, (2, 2))
        thickness = int(random.integers(1, max(2, size // 24) + 1))
        cv2.line(ink, ends[0].tolist(), ends[1].tolist(), float(random.integers(0, 2)), thickness, cv2.LINE_AA)
    if random.random() < 0.15 * spec.difficulty:
        side = random.uniform(0.1, 0.25, 2) * size
        left, top = random.uniform(0.1, 0.7, 2) * size
        ink[int(top) : int(top + side[0]), int(left) : int(left + side[1])] = float(random.random() < 0.25)
    return ink


def _colour(ink: np.ndarray, spec: PictureSpec, random: np.random.Generator) -> np.ndarray:
    """Ink and paper in colour, either darker, over an uneven paper: float32 [S, S, 3] grey levels."""
    size, hard = spec.image_size, min(2.0, spec.difficulty)
    contrast = max(20.0, 255 - random.uniform(0, 255 - MIN_CONTRAST) * hard)
    dark = random.uniform(0, 255 - contrast)
    paper, letters = dark + contrast, dark
    if random.random() < 0.15 * hard:
        paper, letters = letters, paper
    tint = random.uniform(-12, 12, (2, 3)) * hard
    texture = random.standard_normal((7, 7, 3), dtype=np.float32) * np.float32(random.uniform(0, 7) * spec.difficulty)
    shade = cv2.resize(texture, (size, size), interpolation=cv2.INTER_CUBIC)
    coverage = ink[:, :, None]
    levels: np.ndarray = (paper + tint[0]) * (1 - coverage) + (letters + tint[1]) * coverage + shade
    return levels.astype(np.float32)
