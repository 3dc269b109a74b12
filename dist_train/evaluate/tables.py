"""The figures of several models side by side, as tables: one for the terminal and the report."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dist_train.evaluate.all_pairs import AllPairsResult
from dist_train.evaluate.curves import TarAtFar
from dist_train.evaluate.distractors import DistractorResult
from dist_train.evaluate.group_results import GroupsResult
from dist_train.evaluate.identification import IdentificationResult
from dist_train.evaluate.ijb import IjbResult
from dist_train.evaluate.knn import KnnResult
from dist_train.evaluate.quality import QualityResult
from dist_train.evaluate.retrieval_set import RetrievalResult
from dist_train.evaluate.verification import VerificationResult

_NONE = "-"
_COARSE = "* The set has fewer than one expected false accept at this FAR: the TAR is that of none."


@dataclass(frozen=True)
class ModelScores:
    """One model's results; `name` may be empty where there is only one."""

    name: str
    verification: list[VerificationResult] = field(default_factory=list)
    identification: list[IdentificationResult] = field(default_factory=list)
    ijb: list[IjbResult] = field(default_factory=list)
    distractors: list[DistractorResult] = field(default_factory=list)
    knn: list[KnnResult] = field(default_factory=list)
    all_pairs: list[AllPairsResult] = field(default_factory=list)
    groups: list[GroupsResult] = field(default_factory=list)
    quality: list[QualityResult] = field(default_factory=list)
    retrieval: list[RetrievalResult] = field(default_factory=list)

    def searched(self) -> list[IdentificationResult]:
        """All 1:N results, IJB's galleries among them."""
        return [*self.identification, *(each for result in self.ijb for each in result.identification)]


class Cell(NamedTuple):
    """A cell of a table; `best` marks the best of its column among the models, `shade` is its depth in 0 .. 1."""

    text: str
    best: bool = False
    shade: float = 0.0


@dataclass
class Table:
    """Figures with their headings; the first column names the row."""

    title: str
    heads: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The table as aligned lines of text; the best of several models is marked."""
        body = [self.heads, *([f"{c.text} <" if c.best else c.text for c in row] for row in self.rows)]
        # A mark takes room in its column only, and figures stay below one another.
        marked = [any(row[i].endswith(" <") for row in body[1:]) for i in range(len(self.heads))]
        body = [
            [text + "  " if mark and not text.endswith(" <") else text for text, mark in zip(row, marked, strict=True)]
            for row in body
        ]
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        lines = [
            "  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in body)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, *(line.rstrip() for line in lines), *self.notes])


def verification_table(models: Sequence[ModelScores]) -> Table | None:
    """Accuracy, TAR at FAR, threshold and norm by set."""
    results = by_set([(model.name, each) for model in models for each in model.verification])
    fars = _keys(result.tar_at_far for group in results.values() for _, result in group)
    heads = ["set", "accuracy %", *(f"TAR % at {rate(far)}" for far in fars), "threshold", "mean norm"]
    rows = {
        name: [
            [
                label(model, name),
                _accuracy(result),
                *(_tar(result.tar_at_far.get(far)) for far in fars),
                _NONE if result.threshold is None else f"{result.threshold:.3f}",
                f"{result.mean_norm:.2f}",
                f"{len(result.same):,}",
                f"{int((~result.same).sum()):,}",
            ]
            for model, result in group
        ]
        for name, group in results.items()
    }
    table = marked_table("Verification", [*heads, "pairs", "negatives"], rows, best=range(1, 2 + len(fars)))
    return _with_notes(table, results)


def ijb_table(models: Sequence[ModelScores]) -> Table | None:
    """TAR at FAR over the pairs of templates."""
    results = by_set([(model.name, each) for model in models for each in model.ijb])
    fars = _keys(result.tar_at_far for group in results.values() for _, result in group)
    heads = ["set", *(f"TAR % at {rate(far)}" for far in fars), "templates", "pairs", "positives"]
    rows = {
        name: [
            [
                label(model, name),
                *(_tar(result.tar_at_far.get(far)) for far in fars),
                f"{result.templates:,}",
                f"{result.pairs:,}",
                f"{result.positives:,}",
            ]
            for model, result in group
        ]
        for name, group in results.items()
    }
    return marked_table("Templates, 1:1", heads, rows, best=range(1, 1 + len(fars)))


def identification_table(models: Sequence[ModelScores]) -> Table | None:
    """Rank-1, rank-5 and TPIR at FPIR by set."""
    results = by_set([(model.name, each) for model in models for each in model.searched()])
    fpirs = _keys(result.tpir_at_fpir for group in results.values() for _, result in group)
    heads = ["set", "rank-1 %", "rank-5 %", *(f"TPIR % at {rate(fpir)}" for fpir in fpirs), "probes", "gallery"]
    rows = {
        name: [
            [
                label(model, name),
                f"{100 * result.rank1:.2f}",
                f"{100 * result.rank5:.2f}",
                *(_tpir(result.tpir_at_fpir.get(fpir)) for fpir in fpirs),
                f"{result.probes:,}",
                f"{result.gallery:,}",
            ]
            for model, result in group
        ]
        for name, group in results.items()
    }
    return marked_table("Identification", heads, rows, best=range(1, 3 + len(fpirs)))


def distractor_table(models: Sequence[ModelScores]) -> Table | None:
    """Rank-1 by the number of distractors, and TAR at FAR."""
    results = by_set([(model.name, each) for model in models for each in model.distractors])
    counts = sorted(_keys(result.rank1 for group in results.values() for _, result in group))
    fars = _keys(result.tar_at_far for group in results.values() for _, result in group)
    heads = ["set", *(f"rank-1 % in {count:,}" for count in counts), *(f"TAR % at {rate(far)}" for far in fars)]
    rows = {
        name: [
            [
                label(model, name),
                *(f"{100 * result.rank1[count]:.2f}" if count in result.rank1 else "" for count in counts),
                *(_tar(result.tar_at_far.get(far)) for far in fars),
                f"{result.probes:,}",
                f"{result.searches:,}",
            ]
            for model, result in group
        ]
        for name, group in results.items()
    }
    last = 1 + len(counts) + len(fars)
    return marked_table("Identification among distractors", [*heads, "probes", "searches"], rows, best=range(1, last))


def knn_table(models: Sequence[ModelScores]) -> Table | None:
    """Accuracy of the neighbours' vote."""
    results = by_set([(model.name, each) for model in models for each in model.knn])
    rows = {
        name: [
            [
                label(model, name),
                f"{100 * result.accuracy:.2f}",
                f"{result.neighbours:,}",
                f"{result.pictures:,}",
                f"{result.identities:,}",
            ]
            for model, result in group
        ]
        for name, group in results.items()
    }
    return marked_table(
        "By neighbours", ["set", "accuracy %", "neighbours", "pictures", "identities"], rows, best=range(1, 2)
    )


def by_set(results: Sequence[tuple[str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    """Results with their models' names, gathered by the set's name."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for model, result in results:
        groups.setdefault(result.name, []).append((model, result))
    return groups


def label(model: str, dataset: str) -> str:
    """How a row names what was evaluated."""
    return f"{dataset} · {model}" if model else dataset


def rate(value: float) -> str:
    """A rate as figures are quoted: 0.001, 1e-4, 1e-5."""
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _keys(dicts: Iterable[dict[Any, Any]]) -> list[Any]:
    return list(dict.fromkeys(key for each in dicts for key in each))


def _with_notes(table: Table | None, results: dict[str, list[tuple[str, Any]]]) -> Table | None:
    """The table with what its results have to say, once where several models' say the same."""
    if table is not None:
        notes = [f"{name}: {note}" for name, group in results.items() for _, result in group for note in result.notes]
        table.notes += dict.fromkeys(notes)
    return table


def _accuracy(result: VerificationResult) -> str:
    if result.accuracy is None or result.accuracy_std is None:
        return _NONE
    return f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}"


def _tar(entry: TarAtFar | None) -> str:
    return _NONE if entry is None else f"{100 * entry.tar:.2f}{'' if entry.resolved else ' *'}"


def _tpir(value: float | None) -> str:
    return "" if value is None else "too few searches" if math.isnan(value) else f"{100 * value:.2f}"


def marked_table(title: str, heads: list[str], groups: dict[str, list[list[str]]], best: range) -> Table | None:
    """A table whose `best` columns mark the largest value among rows of the same set, where they differ."""
    rows = []
    for group in groups.values():
        marked = set()
        for column in best:
            values = [_leading(row[column]) for row in group]
            if min(values) < max(values):
                marked |= {(i, column) for i, value in enumerate(values) if value == max(values)}
        rows += [[Cell(text, (i, j) in marked) for j, text in enumerate(row)] for i, row in enumerate(group)]
    if not rows:
        return None
    coarse = any(cell.text.endswith(" *") for row in rows for cell in row)
    return Table(title, heads, rows, [_COARSE] if coarse else [])


def _leading(text: str) -> float:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return -math.inf
