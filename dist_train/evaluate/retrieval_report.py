"""What tables and reports say about retrieval: figures, and searches as rows of pictures."""

from collections.abc import Sequence

from dist_train.evaluate.retrieval import KS, RetrievalFigures
from dist_train.evaluate.retrieval_set import Example
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import PictureRow, shown
from dist_train.evaluate.tables import ModelScores, Table, by_set, label, marked_table


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
    searches = [
        Section(
            f"Searches: {label(model.name, result.name)}",
            "Left the probe, then the first of the gallery with their cosines; a tick marks the right ones. From the "
            "worst search to the median by average precision.",
            rows=[_row(example) for example in result.examples],
        )
        for model in models
        for result in model.retrieval
        if result.examples
    ]
    return [Section(table.title, note, [table]), *searches]


def _row(example: Example) -> PictureRow:
    """A search as pictures: the probe, and what was found."""
    right = sum(found.right for found in example.found)
    return PictureRow(
        shown(example.probe, "probe"),
        [shown(found.picture, f"{found.score:.3f}", found.right) for found in example.found],
        f"average precision {100 * example.precision:.1f} %, {right} of the first {len(example.found)} are right",
    )


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
