"""What is shown of qualities: a table, and for reports the curve of error against discarded share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_train.evaluate import plots
from dist_train.evaluate.quality import LIMIT, QualityResult
from dist_train.evaluate.sections import Section
from dist_train.evaluate.tables import Cell, Table, label, rate

if TYPE_CHECKING:
    from dist_train.evaluate.tables import ModelScores

_NONE = "-"
_SHOWN = (0.0, 0.1, 0.2, 0.3)


def quality_table(models: Sequence["ModelScores"]) -> Table | None:
    """FNMR at discarded shares, and pAUC."""
    results = _results(models)
    if not results:
        return None
    heads = [
        "set",
        *(f"FNMR % less {100 * share:g} %" if share else "FNMR %" for share in _SHOWN),
        "pAUC of random [95 %]",
        "best",
        "pairs",
    ]
    rows = []
    for name, result in results:
        low, high = result.share_95
        known = result.share == result.share
        rows.append(
            [
                name,
                *(f"{100 * result.errors[share]:.2f}" for share in _SHOWN),
                f"{result.share:.3f} [{low:.3f}, {high:.3f}]" if known else _NONE,
                f"{result.best_share:.3f}" if known else _NONE,
                f"{result.pairs:,}",
            ]
        )
    notes = [f"{name}: {note}" for name, result in results for note in result.notes]
    return Table("Quality", heads, [[Cell(text) for text in row] for row in rows], notes)


def quality_sections(models: Sequence["ModelScores"]) -> list[Section]:
    """FNMR against the discarded share."""
    table = quality_table(models)
    if table is None:
        return []
    note = (
        "Genuine pairs are discarded from the lowest quality up, a pair's being the lower of its two pictures'. FNMR "
        f"of those left, at one threshold. pAUC is the area up to {100 * LIMIT:g} %, as a share of that of a quality "
        "that knows nothing."
    )
    drawn: dict[str, list[tuple[str, QualityResult]]] = {}
    for model in models:
        for result in model.quality:
            name = f"{result.name} at FMR {rate(result.fmr)}"
            drawn.setdefault(name, []).append((label(model.name, result.by) if model.name else result.by, result))
    figures = [plots.plot_discard(name, curves, LIMIT) for name, curves in drawn.items()]
    return [Section(table.title, note, [table], [figures])]


def _results(models: Sequence["ModelScores"]) -> list[tuple[str, QualityResult]]:
    return [
        (f"{label(model.name, result.name)} at FMR {rate(result.fmr)}: {result.by}", result)
        for model in models
        for result in model.quality
    ]
