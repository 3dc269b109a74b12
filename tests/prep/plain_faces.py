"""Photos of the plainest faces there are, for what must be quick: a light oval with two eyes, a nose and a mouth."""

from pathlib import Path

import cv2
import numpy as np

from data_prep.faces.table import EDGES, PATH, POINTS

PLACES = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.78], [0.65, 0.78]])  # in units of the box


def plain_photo(rng: np.random.Generator, size: tuple[int, int], faces: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [height, width, 3], blue first, and the boxes [n, 4] of its faces, apart from each other."""
    height, width = size
    coarse = rng.integers(0, 130, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    boxes = []
    for _ in range(20 * faces):
        side = int(rng.integers(24, min(size) // 2))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        box = np.array([left, top, left + 0.85 * side, top + side])
        if len(boxes) < faces and all((box[:2] > b[2:]).any() or (box[2:] < b[:2]).any() for b in boxes):
            boxes.append(box)
            _draw(picture, box, rng)
    return picture, np.array(boxes).reshape(-1, 4)


def _draw(picture: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> None:
    size = box[2:] - box[:2]
    skin = tuple(int(each) for each in rng.integers(170, 250, 3))
    cv2.ellipse(picture, (tuple((box[:2] + box[2:]) / 2), tuple(size), 0.0), skin, -1, cv2.LINE_AA)
    left_eye, right_eye, nose, *mouth = (box[:2] + PLACES * size).round().astype(int).tolist()
    radius = max(1, round(0.07 * size[0]))
    for eye in (left_eye, right_eye):
        cv2.circle(picture, eye, radius, (20, 20, 20), -1, cv2.LINE_AA)
    cv2.circle(picture, nose, max(1, radius // 2), (90, 90, 120), -1, cv2.LINE_AA)
    cv2.line(picture, *mouth, (40, 40, 120), max(1, radius), cv2.LINE_AA)


def write_plain_set(directory: Path, photos: int, seed: int = 0, size: tuple[int, int] = (120, 160)) -> Path:
    """A table of faces beside its photos, one or two faces in most of them, none in some."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [",".join([PATH, *EDGES, *POINTS])]
    for number in range(photos):
        picture, boxes = plain_photo(rng, size, number % 3)
        cv2.imwrite(str(directory / f"{number:04d}.png"), picture)
        for box in boxes:
            points = (box[:2] + PLACES * (box[2:] - box[:2])).ravel()
            lines.append(",".join([f"{number:04d}.png", *(f"{each:.2f}" for each in [*box, *points])]))
        if not len(boxes):
            lines.append(f"{number:04d}.png" + "," * (len(EDGES) + len(POINTS)))
    (directory / "faces.csv").write_text("\n".join(lines) + "\n")
    return directory


def write_plain_celeba(root: Path, photos: int, seed: int = 0, size: tuple[int, int] = (120, 160)) -> Path:
    """Photos of two faces in CelebA's layout, whose lists have the first face alone."""
    base = root / "img_celeba"
    base.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    boxes, points = [str(photos), "image_id x_1 y_1 width height"], [str(photos), "lefteye_x and others"]
    for number in range(photos):
        picture, found = plain_photo(rng, size, 2)
        cv2.imwrite(str(base / f"{number:06d}.png"), picture)
        corner, sides = found[0, :2], found[0, 2:] - found[0, :2]
        boxes.append(f"{number:06d}.png " + " ".join(f"{each:.2f}" for each in [*corner, *sides]))
        points.append(f"{number:06d}.png " + " ".join(f"{each:.2f}" for each in (corner + PLACES * sides).ravel()))
    (root / "list_bbox_celeba.txt").write_text("\n".join(boxes) + "\n")
    (root / "list_landmarks_celeba.txt").write_text("\n".join(points) + "\n")
    return root
