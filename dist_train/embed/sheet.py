"""A picture of what a search found: the query and the best matches side by side."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.runtime.written import written_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5
_CAPTION = 24  # characters of a line


class Tile(NamedTuple):
    """A picture with a caption.

    Attributes:
        pixels: uint8 [H, W, 3], red first; None where the picture cannot be read any more.
        caption: up to three lines.
    """

    pixels: NDArray[np.uint8] | None
    caption: Sequence[str]


def write_sheet(path: Path, queries: Sequence[Tile], matches: Sequence[Tile], title: str) -> None:
    """Write a PNG: queries on the left, matches on the right, row by row.

    Raises:
        WorkError: it cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(matches))
    rows = max(-(-len(matches) // columns), len(queries))
    figure = Figure(figsize=(1.9 * (columns + 1) + 0.4, 2.6 * rows + 0.4), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2, width_ratios=[1, 0.08, *[1] * columns])
    for number, tile in enumerate(queries):
        _draw(figure.add_subplot(grid[number, 0]), tile)
    for number, tile in enumerate(matches):
        _draw(figure.add_subplot(grid[number // columns, 2 + number % columns]), tile)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    with warnings.catch_warnings(), written_output(path) as file:
        warnings.simplefilter("ignore")  # names in scripts that the font lacks
        figure.savefig(file, dpi=110, format="png")


def _draw(axes: "Axes", tile: Tile) -> None:
    axes.axis("off")
    if tile.pixels is None:
        axes.imshow(np.full((8, 8, 3), 200, np.uint8))
        axes.text(3.5, 3.5, "cannot be\nread any more", ha="center", va="center", fontsize=8)
    else:
        axes.imshow(tile.pixels)
    axes.set_title("\n".join(_cut(line) for line in tile.caption), fontsize=8, loc="left")


def _cut(line: str) -> str:
    """A line that fits over a tile; the end tells more than the start. A dollar sign would start a formula."""
    short = line if len(line) <= _CAPTION else f"...{line[3 - _CAPTION :]}"
    return short.replace("$", r"\$")
