"""A matrix as a table whose cells are shaded by their values."""

import math
from collections.abc import Callable, Sequence

from dist_train.evaluate.tables import Cell, Table

MOST_NAMES = 30  # rows, and columns, of a matrix that is shown


def heat_table(
    title: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    text: Callable[[float], str],
    *,
    log: bool = False,
) -> Table:
    """A matrix as a table; the largest value has the deepest shade, the smallest none.

    Args:
        title: of the table.
        corner: heading of the column with the rows' names.
        rows: names, [R].
        columns: names, [C].
        values: numbers [R][C]; what is None or not finite is shown as "-".
        text: a value as it is written.
        log: shade by the logarithm; 0 and below have no shade then.
    """
    shown = [list(line[:MOST_NAMES]) for line in values[:MOST_NAMES]]
    depths = [[_depth(value, log) for value in line] for line in shown]
    finite = [depth for line in depths for depth in line if depth is not None]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    body = [
        [
            Cell(name),
            *(
                Cell(text(value), shade=0.0 if depth is None or high == low else (depth - low) / (high - low))
                if value is not None and math.isfinite(value)
                else Cell("-")
                for value, depth in zip(line, line_depths, strict=True)
            ),
        ]
        for name, line, line_depths in zip(rows[:MOST_NAMES], shown, depths, strict=True)
    ]
    notes = [
        f"The first {MOST_NAMES} of {len(names):,} {kind} are shown."
        for names, kind in ((rows, "rows"), (columns, "columns"))
        if len(names) > MOST_NAMES
    ]
    return Table(title, [corner, *columns[:MOST_NAMES]], body, notes)


def _depth(value: float | None, log: bool) -> float | None:
    """Where a value stands on the scale of shades; None for none."""
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return None
    return math.log(value) if log else value
