"""Operating points as a table, and as a section of a report."""

import math
from collections.abc import Sequence

from dist_train.evaluate import plots
from dist_train.evaluate.all_pairs import AllPairsResult
from dist_train.evaluate.curves import Histogram
from dist_train.evaluate.operating_points import OperatingPoint
from dist_train.evaluate.sections import Section
from dist_train.evaluate.tables import Cell, ModelScores, Table, by_set, label, rate
from dist_train.evaluate.verification import FOLDS

_HEADS = ["set", "FMR", "threshold", "FNMR %", "95 % interval", "measured FMR"]
_UNRESOLVED = (
    "* The set has fewer than 3 / FMR pairs of different identities: by the rule of three it does not carry this rate."
)


def all_pairs_table(models: Sequence[ModelScores]) -> Table | None:
    """Threshold and FNMR with its interval by set and FMR; what the sets are, and the searches among their pictures."""
    results = by_set([(model.name, each) for model in models for each in model.all_pairs])
    if not results:
        return None
    rows, notes = [], []
    for name, group in results.items():
        for number in range(len(group[0][1].points)):
            points = [result.points[number] for _, result in group]
            best = min(point.fnmr for point in points)
            differ = best < max(point.fnmr for point in points)
            rows += [
                _row(label(model, name), point, differ and point.fnmr == best)
                for (model, _), point in zip(group, points, strict=True)
            ]
        notes += [f"{label(model, name)}: {_told(result)}" for model, result in group]
        notes += dict.fromkeys(f"{name}: {note}" for _, result in group for note in result.notes)
    if any(row[1].text.endswith(" *") for row in rows):
        notes.insert(0, _UNRESOLVED)
    return Table("Operating points", _HEADS, rows, notes)


def _row(name: str, point: OperatingPoint, best: bool) -> list[Cell]:
    interval = "-" if math.isnan(point.fnmr_low) else f"{100 * point.fnmr_low:.2f} to {100 * point.fnmr_high:.2f}"
    return [
        Cell(name),
        Cell(rate(point.fmr) + ("" if point.resolved else " *")),
        Cell(f"{point.threshold:.4f}"),
        Cell(f"{100 * point.fnmr:.2f}", best),
        Cell(interval),
        Cell(f"{point.measured_fmr:.2e}"),
    ]


def _told(result: AllPairsResult) -> str:
    """What a set is, and the searches among its pictures."""
    told = (
        f"{result.pictures:,} pictures of {result.identities:,} identities, {result.genuine_pairs:,} pairs of the same "
        f"and {result.impostor_pairs:,} of different ones"
    )
    if result.accuracy is not None:
        mean, deviation = (100 * each for each in result.accuracy)
        told += f"; accuracy {mean:.2f} +- {deviation:.2f} % over {FOLDS} folds of the list"
    if result.rank1 is None or result.rank5 is None:
        return told
    return (
        f"{told}; of {result.searched:,} pictures, each searched among all others, {100 * result.rank1:.2f} % have a "
        f"mate first, {100 * result.rank5:.2f} % among the first five"
    )


def all_pairs_sections(models: Sequence[ModelScores]) -> list[Section]:
    """Operating points with their intervals, error curves and the spread of scores."""
    table = all_pairs_table(models)
    if table is None:
        return []
    results = by_set([(model.name, each) for model in models for each in model.all_pairs])
    note = (
        "Which threshold, and what is missed at it? A pair matches when its cosine is at least the threshold. FMR is "
        "the share of pairs of different identities that match, FNMR that of pairs of the same identity that do not; "
        "the interval comes from drawing the identities anew a thousand times."
    )
    drawn = []
    for name, group in results.items():
        curves = [(model or name, result.curve, result.points) for model, result in group]
        spreads = [plots.plot_scores(label(model, name), _with_threshold(result)) for model, result in group]
        drawn.append([plots.plot_operating_points(name, curves), *spreads])
    return [Section(table.title, note, [table], drawn)]


def _with_threshold(result: AllPairsResult) -> Histogram:
    """The spread of scores, with the threshold at the lowest rate that the set carries."""
    point = result.last_resolved()
    return result.spread if point is None else result.spread._replace(threshold=point.threshold)
