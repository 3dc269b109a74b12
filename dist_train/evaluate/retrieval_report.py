"""What tables and reports say about retrieval: figures, and searches as strips of pictures."""

from collections.abc import Sequence
from html import escape

from dist_train.evaluate.plots import COLORS
from dist_train.evaluate.retrieval import KS, RetrievalFigures
from dist_train.evaluate.retrieval_set import Example
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import data_uri
from dist_train.evaluate.tables import ModelScores, Table, by_set, label, marked_table

_SIDE, _GAP, _TEXT = 96, 8, 20  # of a picture in a strip, between pictures, and of the line below, in units of the SVG
_RIGHT, _WRONG = COLORS[2], COLORS[1]


def retrieval_table(models: Sequence[ModelScores]) -> Table | None:
    """R@k, mAP, mAP@R, R-precision and mINP by set; re-ranked figures have a row of their own."""
    results = by_set([(model.name, each) for model in models for each in model.retrieval])
    ks = [k for k in KS if any(k in each.figures.recall for group in results.values() for _, each in group)]
    rows: dict[str, list[list[str]]] = {}
    for name, group in results.items():
        for model, result in group:
            counts = [f"{result.probes:,}", f"{result.gallery:,}"]
            rows.setdefault(name, []).append([label(model, name), *_cells(result.figures, ks), *counts])
            if result.reranked is not None:
                again = f"{name}, re-ranked"
                rows.setdefault(again, []).append([label(model, again), *_cells(result.reranked, ks), *counts])
    heads = ["set", *(f"R@{k:,} %" for k in ks), "mAP %", "mAP@R %", "R-precision %", "mINP %", "probes", "gallery"]
    table = marked_table("Retrieval", heads, rows, best=range(1, 5 + len(ks)))
    if table is not None:
        said = [_note(name, group[0][1].without_mate, group[0][1].ignore_same) for name, group in results.items()]
        table.notes += [note for note in said if note]
    return table


def retrieval_sections(models: Sequence[ModelScores]) -> list[Section]:
    """The table, and searches of every model and set as pictures."""
    table = retrieval_table(models)
    if table is None:
        return []
    note = (
        "What comes first in a search? R@k is the share of probes with a mate among the first k; mAP, mAP@R, "
        "R-precision and mINP look at all mates."
    )
    shown = [
        Section(
            f"Searches: {label(model.name, result.name)}",
            "Left the probe, then the first of the gallery with their cosines; a tick marks the right ones. From the "
            "worst search to the median by average precision.",
            plots=[[strip(example) for example in result.examples]],
        )
        for model in models
        for result in model.retrieval
        if result.examples
    ]
    return [Section(table.title, note, [table]), *shown]


def strip(example: Example) -> str:
    """A search as SVG text: the probe, and what was found."""
    pitch = _SIDE + _GAP
    width, height = pitch * (len(example.found) + 1) + 2 * _GAP, _SIDE + _TEXT + _GAP
    parts = [_picture(example.probe, 0, None), _text(0, f"AP {100 * example.precision:.1f} %")]
    for place, found in enumerate(example.found, 1):
        left = place * pitch + 2 * _GAP
        parts.append(_picture(found.picture, left, _RIGHT if found.right else _WRONG))
        parts.append(_text(left, f"{'✓' if found.right else '✗'} {found.score:.3f}"))
    right = sum(found.right for found in example.found)
    title = f"a search: {right} of the first {len(example.found)} are right"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width} {height}" role="img" class="plot">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _picture(encoded: bytes, left: int, color: str | None) -> str:
    frame = "" if color is None else f' stroke="{color}" stroke-width="3"'
    return (
        f'<image href="{data_uri(encoded)}" x="{left}" y="0" width="{_SIDE}" height="{_SIDE}" '
        'preserveAspectRatio="xMidYMid meet"/>'
        f'<rect x="{left}" y="0" width="{_SIDE}" height="{_SIDE}" fill="none"{frame}/>'
    )


def _text(left: int, words: str) -> str:
    return f'<text x="{left}" y="{_SIDE + _TEXT - 4}" font-size="14" fill="currentColor">{escape(words)}</text>'


def _cells(figures: RetrievalFigures, ks: Sequence[int]) -> list[str]:
    shares = [figures.recall.get(k) for k in ks]
    shares += [figures.mean_ap, figures.map_at_r, figures.r_precision, figures.minp]
    return ["" if share is None else f"{100 * share:.2f}" for share in shares]


def _note(name: str, without_mate: int, ignore_same: str | None) -> str:
    said = []
    if ignore_same is not None:
        said.append(f"gallery entries of a probe's own label and {ignore_same} are left out")
    if without_mate:
        said.append(f"{without_mate:,} probes have no mate and do not count")
    return f"{name}: {'; '.join(said)}." if said else ""
