"""The job of `headcount prep drawn-faces`: photos, the table of their faces, a contact sheet."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.drawn.photo import DrawnPhoto, PhotoSpec, draw_photo
from data_prep.faces.marked import mark_faces
from data_prep.faces.table import EDGES, PATH, POINTS
from data_prep.new_directory import new_directory
from dist_train.errors import UserError
from dist_train.runtime.in_processes import in_processes
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.version import version_of
from dist_train.runtime.written import write_json

TABLE, SHEET, ABOUT = "faces.csv", "sheet.png", "drawn.json"
_UNIT = 100  # photos that a process draws at a time
_FOLDER = 1000  # photos in a folder
_SHEET = (6, 4)  # columns and rows
_TILE_PX = 320


class Drawn(NamedTuple):
    """What was drawn: numbers of photos, of those without a face, and of faces."""

    photos: int
    empty: int
    faces: int


def draw_faces(output: Path, spec: PhotoSpec, photos: int, workers: int) -> Drawn:
    """Draw a set into a new folder.

    Raises:
        UserError: the output is not empty, or the sizes do not fit.
        WorkError: the output cannot be written.
    """
    if not spec.min_face <= min(spec.max_face, 0.9 * spec.height):
        raise UserError(
            f"--min-face {spec.min_face} with --max-face {spec.max_face} in photos {spec.height} pixels high; expected "
            "at most the largest face, and at most 0.9 of the height"
        )
    with new_directory(output) as writing:
        units = [range(start, min(start + _UNIT, photos)) for start in range(0, photos, _UNIT)]
        empty = faces = 0
        with (
            (writing / TABLE).open("w", encoding="utf-8") as table,
            progress_bar(total=photos, desc="draw faces", unit="photo") as bar,
        ):
            table.write(",".join((PATH, *EDGES, *POINTS)) + "\n")
            for lines in _drawn(partial(_draw_unit, writing, spec), units, workers):
                table.writelines(line for rows in lines for line in rows)
                empty += sum(rows[0].endswith(",\n") for rows in lines)
                faces += sum(len(rows) for rows in lines if not rows[0].endswith(",\n"))
                bar.update(len(lines))
        _write_sheet(writing / SHEET, spec, photos)
        versions = {name: version_of(name) for name in ("opencv-python-headless", "numpy")}
        counts = Drawn(photos, empty, faces)
        write_json(writing / ABOUT, {"options": asdict(spec), "drawn": counts._asdict(), "versions": versions})
    return counts


def _drawn(draw: "partial[list[list[str]]]", units: list[range], workers: int) -> Iterator[list[list[str]]]:
    """The lines of each photo of each unit, in order, from so many processes."""
    if workers == 1 or len(units) == 1:
        yield from map(draw, units)
        return
    yield from in_processes(draw, units, workers)


def _draw_unit(output: Path, spec: PhotoSpec, numbers: range) -> list[list[str]]:
    """Draw photos into their folder; the lines of the table for each of them."""
    lines = []
    for number in numbers:
        name = f"photos/{number // _FOLDER:04d}/{number:07d}.jpg"
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_photo(spec, number)
        path.write_bytes(drawn.jpeg)
        lines.append(_lines(name, drawn))
    return lines


def _lines(name: str, drawn: DrawnPhoto) -> list[str]:
    if not len(drawn.boxes):
        return [name + "," * (len(EDGES) + len(POINTS)) + "\n"]
    values = np.concatenate([drawn.boxes, drawn.points.reshape(-1, 10)], 1)
    return [",".join([name, *(f"{value:.2f}" for value in row)]) + "\n" for row in values]


def _write_sheet(path: Path, spec: PhotoSpec, photos: int) -> None:
    """Write the first photos with their boxes and points, in rows."""
    columns, rows = _SHEET
    size = _TILE_PX, max(1, round(_TILE_PX * spec.height / spec.width))
    tiles = np.full((rows * columns, size[1], size[0], 3), 255, np.uint8)
    for number in range(min(photos, len(tiles))):
        drawn = draw_photo(spec, number)
        marked = mark_faces(drawn.pixels, drawn.boxes, drawn.points)
        tiles[number] = cv2.resize(marked, size, interpolation=cv2.INTER_AREA)
    sheet = tiles.reshape(rows, columns, size[1], size[0], 3).swapaxes(1, 2).reshape(rows * size[1], -1, 3)
    path.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
