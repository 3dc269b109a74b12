"""What is said about a detector on a set: a table, and a page with curves, misses and false alarms."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.faces.marked import BLUE, GREEN, RED, YELLOW, mark_faces
from data_prep.faces.pixels import open_photo
from data_prep.judge import fddb
from data_prep.judge.curves import FALSE_ALARMS, Curve
from data_prep.judge.figures import ONE, Figures
from data_prep.judge.matching import WRONG
from data_prep.judge.search import Found
from data_prep.mtcnn.faces import Picture
from dist_train.data.reject import Reject
from dist_train.evaluate.plots import Line, plot_lines
from dist_train.evaluate.report import write_page
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import UNREADABLE, ShownPicture, data_uri
from dist_train.evaluate.tables import Cell, Table

MOST_SHOWN = 48
"""Misses, and false alarms, on a page."""
_AROUND = 0.5  # widths of a face to each side of it that a picture shows
_SIDE_PX = 200
_QUALITY = 85  # of JPEG


def tables_of(figures: Figures) -> list[Table]:
    """The figures as tables."""
    curve = figures.curve
    heads = ["height in pixels", "faces", *(f"{each:g}" for each in FALSE_ALARMS)]
    rows = [["all", f"{curve.faces:,}", *(_percent(curve.recall(each)) for each in FALSE_ALARMS)]]
    for size in figures.sizes:
        name = f"{size.low} to {size.high}" if size.high else f"{size.low} or more"
        rows.append([name, f"{size.faces:,}", *(_percent(found / size.faces) for found in size.found)])
    recall = _table("Recall %, by false alarms per photo", heads, rows)
    recall.notes.append(
        f"Average precision {_percent(figures.precision)} %, {curve.faces:,} faces, {curve.photos:,} photos."
    )
    tables = [recall]
    if figures.wider is not None:
        rows = [["average precision %", *map(_percent, figures.wider.values())]]
        tables.append(_table("WIDER FACE", ["subset", *figures.wider], rows))
    if (roc := figures.fddb) is not None:
        shares = [_percent(roc.recall(each / roc.photos)) for each in fddb.FALSE_ALARMS]
        heads = ["false alarms", *(f"{each:,}" for each in fddb.FALSE_ALARMS)]
        tables.append(_table("FDDB, discrete score", heads, [["recall %", *shares]]))
    if (points := figures.points) is not None:
        heads = ["error / width, %", "mean", "median", *points.points]
        errors = [points.mean, points.median, *points.points.values()]
        table = _table("Five points", heads, [["", *(f"{100 * each:.2f}" for each in errors)]])
        limits = ", ".join(f"{_percent(share)} % below {100 * limit:g} %" for limit, share in points.within.items())
        table.notes.append(f"Of {points.faces:,} faces {limits}.")
        tables.append(table)
    return tables


def _table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    return Table(title, heads, [[Cell(text) for text in row] for row in rows])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if np.isfinite(share) else "-"


def write_report(path: Path, title: str, subtitle: str, found: list[Found], figures: Figures) -> None:
    """Write the page, by rename; photos of what it shows are read again.

    Raises:
        WorkError: the file cannot be written.
    """
    drawn = [_plot("Recall", "false alarms per photo", figures.curve, figures.curve.photos)]
    if figures.fddb is not None:
        drawn.append(_plot("FDDB, discrete score", "false alarms", figures.fddb, 1))
    note = "A face is found if a box overlaps it by half, intersection over union. Ignored faces count neither way."
    colors = "Green: known faces. Yellow: ignored. Blue: found. Red: what the picture is about."
    sections = [
        Section("Figures", note, tables_of(figures), [drawn]),
        Section(
            "Misses",
            f"Known faces not found at {ONE:g} false alarm per photo, the largest first. {colors}",
            pictures=_misses(found, figures),
        ),
        Section(
            "False alarms",
            f"Boxes that are no known face, the most certain first: unmarked faces among them. {colors}",
            pictures=_false_alarms(found, figures),
        ),
    ]
    write_page(path, title, sections, subtitle)


def _plot(title: str, x: str, curve: Curve, unit: int) -> str:
    alarms = np.maximum(curve.wrong, 0.5) / unit  # a logarithmic axis has no 0
    return plot_lines(title, x, "recall", [Line("recall", alarms, curve.right / max(1, curve.faces))], log_x=True)


def _misses(found: list[Found], figures: Figures) -> list[ShownPicture]:
    lost = [
        (float(each.photo.boxes[face, 3] - each.photo.boxes[face, 1]), number, int(face))
        for number, (each, mine) in enumerate(zip(found, figures.missed, strict=True))
        for face in np.flatnonzero(mine)
    ]
    lost.sort(key=lambda miss: (-miss[0], miss[1:]))
    return [
        _shown(found[number], found[number].photo.boxes[face], figures, f"{height:.0f} px: {found[number].photo.name}")
        for height, number, face in lost[:MOST_SHOWN]
    ]


def _false_alarms(found: list[Found], figures: Figures) -> list[ShownPicture]:
    matches = figures.matches
    shown = []
    for at in np.flatnonzero(matches.face == WRONG)[:MOST_SHOWN]:
        each = found[matches.photo[at]]
        caption = f"{matches.scores[at]:.3f}: {each.photo.name}"
        shown.append(_shown(each, each.faces.boxes[matches.place[at]], figures, caption))
    return shown


def _shown(found: Found, box: NDArray[np.float32], figures: Figures, caption: str) -> ShownPicture:
    """The surroundings of a box, with all boxes there."""
    opened = open_photo(found.photo)
    if isinstance(opened, Reject):
        return ShownPicture(UNREADABLE, caption)
    center, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()) * (1 + 2 * _AROUND)
    scale, corner = _SIDE_PX / max(side, 1.0), center - side / 2
    square = _cut(opened[0], corner.astype(np.float64), scale)
    photo, ignored = found.photo, found.photo.ignored
    sure = found.faces.scores >= figures.threshold
    for boxes, color in (
        (photo.boxes[~ignored], GREEN),
        (photo.boxes[ignored], YELLOW),
        (found.faces.boxes[sure], BLUE),
        (box[None], RED),
    ):
        square = mark_faces(square, (boxes - np.tile(corner, 2)) * scale, color=color)
    encoded = cv2.imencode(".jpg", square[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return ShownPicture(data_uri(encoded.tobytes()), caption)


def _cut(pixels: Picture, corner: NDArray[np.float64], scale: float) -> Picture:
    """A square of a photo that begins at `corner`, scaled; grey outside of the photo."""
    while scale < 0.5:  # a warp looks at four pixels at a time: what is smaller is halved first
        half = (max(1, pixels.shape[1] // 2), max(1, pixels.shape[0] // 2))
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), np.uint8)
        corner, scale = corner / 2, 2 * scale
    move = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    return np.asarray(cv2.warpAffine(pixels, move, (_SIDE_PX, _SIDE_PX), borderValue=(128, 128, 128)), np.uint8)
