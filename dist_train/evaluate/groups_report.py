"""What is shown of groups: a table, and for reports the rates with their intervals and those across groups."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_train.evaluate import plots
from dist_train.evaluate.group_results import Differential, GroupsResult
from dist_train.evaluate.heat_table import heat_table
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
        rows += _rows(result, f"{name} = ", f"{name}: ")
        notes += _notes(result, f"{name}: ")
    return _group_table("Groups", rows, notes)


def _group_table(title: str, rows: list[list[str]], notes: list[str]) -> Table:
    if any(cell.endswith(" *") for row in rows for cell in row):
        notes = [*notes, "* significantly higher than in the other groups"]
    heads = ["group", "pictures", "identities", "FMR % [95 %]", "FNMR % [95 %]"]
    return Table(title, heads, [[Cell(text) for text in row] for row in rows], notes)


def _rows(result: GroupsResult, group_of: str = "", all_of: str = "") -> list[list[str]]:
    """A row for each group and one for all pairs; the words stand before their names."""
    rows = []
    for group in result.groups:
        rates = _shown(group.fmr, group.worse_fmr), _shown(group.fnmr, group.worse_fnmr)
        rows.append([f"{group_of}{group.name}", f"{group.pictures:,}", f"{group.identities:,}", *rates])
    overall = _shown(result.overall_fmr), _shown(result.overall_fnmr)
    return [*rows, [f"{all_of}all pairs, cosine {result.threshold:.4f}", "", "", *overall]]


def _notes(result: GroupsResult, before: str = "") -> list[str]:
    differentials = (
        f"{kind} differential: worst over best {_ratio(of)}, Gini {_plain(of.gini)}"
        for kind, of in (
            ("false match rate", result.fmr_differential),
            ("false non-match rate", result.fnmr_differential),
        )
    )
    return [f"{before}{note}" for note in (*differentials, *result.notes)]


def groups_sections(models: Sequence["ModelScores"]) -> list[Section]:
    """Rates of groups, as a table and a figure, and FMR across groups."""
    results = _results(models)
    if not results:
        return []
    note = (
        "One threshold for everybody, at an FMR over all impostor pairs. FMR of a group counts impostor pairs inside "
        "it, FNMR its genuine pairs; intervals are over identities."
    )
    made = []
    for name, result in results:
        made.append(_group_table(name, _rows(result), _notes(result)))
        if result.across_fmr:
            made.append(_across_table(name, result))
    drawn = [
        [
            plots.plot_rates(f"FMR by {found.by}: {name}", "FMR", [(each.name, each.fmr) for each in found.groups]),
            plots.plot_rates(f"FNMR by {found.by}: {name}", "FNMR", [(each.name, each.fnmr) for each in found.groups]),
        ]
        for model in models
        for found in model.groups
        for name in [f"{label(model.name, found.name)} at {rate(found.fmr)}"]
    ]
    return [Section("Groups", note, made, drawn)]


def _across_table(name: str, result: GroupsResult) -> Table:
    names = [group.name for group in result.groups]
    rates = {(group.name, group.name): group.fmr for group in result.groups} | result.across_fmr
    rates |= {(other, one): rate for (one, other), rate in result.across_fmr.items()}
    shares = [[100 * rates[one, other].share for other in names] for one in names]
    return heat_table(f"FMR % across groups: {name}", result.by, names, names, shares, _digits, log=True)


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
