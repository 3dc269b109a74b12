"""What is shown of groups: a table, and for reports the rates with their intervals and those across groups."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_train.evaluate import plots
from dist_train.evaluate.group_results import Differential, GroupsResult
from dist_train.evaluate.rates import Rate
from dist_train.evaluate.sections import Section
from dist_train.evaluate.tables import Cell, Table, label, rate

if TYPE_CHECKING:
    from dist_train.evaluate.tables import ModelScores

_NONE = "-"


def groups_table(models: Sequence["ModelScores"]) -> Table | None:
    """Pictures and rates of each group."""
    results = _results(models)
    if not results:
        return None
    rows, notes = [], []
    for name, result in results:
        for group in result.groups:
            rates = _shown(group.fmr, group.worse_fmr), _shown(group.fnmr, group.worse_fnmr)
            rows.append([f"{name} = {group.name}", f"{group.pictures:,}", f"{group.identities:,}", *rates])
        overall = _shown(result.overall_fmr), _shown(result.overall_fnmr)
        rows.append([f"{name}: all pairs, cosine {result.threshold:.4f}", "", "", *overall])
        notes += [
            f"{name}: {kind} differential: worst over best {_ratio(of)}, Gini {_plain(of.gini)}"
            for kind, of in (
                ("false match rate", result.fmr_differential),
                ("false non-match rate", result.fnmr_differential),
            )
        ]
        notes += [f"{name}: {note}" for note in result.notes]
    if any(cell.endswith(" *") for row in rows for cell in row):
        notes.append("* significantly higher than in the other groups")
    heads = ["group", "pictures", "identities", "FMR % [95 %]", "FNMR % [95 %]"]
    return Table("Groups", heads, [[Cell(text) for text in row] for row in rows], notes)


def groups_sections(models: Sequence["ModelScores"]) -> list[Section]:
    """Rates of groups, as a table and a figure, and FMR across groups."""
    table = groups_table(models)
    if table is None:
        return []
    note = (
        "One threshold for everybody, at an FMR over all impostor pairs. FMR of a group counts impostor pairs inside "
        "it, FNMR its genuine pairs; intervals are over identities."
    )
    across = [_across_table(name, result) for name, result in _results(models) if result.across_fmr]
    drawn = [
        [
            plots.plot_rates(f"FMR by {found.by}: {name}", "FMR", [(each.name, each.fmr) for each in found.groups]),
            plots.plot_rates(f"FNMR by {found.by}: {name}", "FNMR", [(each.name, each.fnmr) for each in found.groups]),
        ]
        for model in models
        for found in model.groups
        for name in [f"{label(model.name, found.name)} at {rate(found.fmr)}"]
    ]
    return [Section(table.title, note, [table, *across], drawn)]


def _across_table(name: str, result: GroupsResult) -> Table:
    names = [group.name for group in result.groups]
    rows = [
        [
            Cell(one),
            *(
                Cell(
                    _percent(
                        result.groups[i].fmr
                        if one == other
                        else result.across_fmr.get((one, other)) or result.across_fmr[other, one]
                    )
                )
                for other in names
            ),
        ]
        for i, one in enumerate(names)
    ]
    return Table(f"FMR % across groups: {name}", [f"FMR %: {name}", *names], rows)


def _results(models: Sequence["ModelScores"]) -> list[tuple[str, GroupsResult]]:
    return [
        (f"{label(model.name, result.name)} at FMR {rate(result.fmr)}: {result.by}", result)
        for model in models
        for result in model.groups
    ]


def _shown(of: Rate, worse: bool = False) -> str:
    if not of.pairs:
        return _NONE
    low, high = of.interval
    return f"{_percent(of)} [{_digits(100 * low)}, {_digits(100 * high)}]{' *' if worse else ''}"


def _percent(of: Rate) -> str:
    return _digits(100 * of.share) if of.pairs else _NONE


def _digits(percent: float) -> str:
    """Three digits of a percentage, without an exponent."""
    if percent == 0:
        return "0"
    return f"{percent:.{min(8, max(0, 2 - math.floor(math.log10(percent))))}f}"


def _ratio(of: Differential) -> str:
    return _plain(of.worst_over_best)


def _plain(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"
