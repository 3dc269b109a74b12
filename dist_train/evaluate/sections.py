"""What a report says about the results of models: tables, curves, the pairs that went wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_train.evaluate import plots, tables
from dist_train.evaluate.curves import DRAWN_POINTS, Histogram, Roc, histogram, roc, sort_scores
from dist_train.evaluate.shown_pictures import PictureRow, ShownPicture, picture_source
from dist_train.evaluate.tables import ModelScores, Table, by_set, label


@dataclass
class Section:
    """A part of the page; what is empty is not shown.

    Attributes:
        title: heading, and its line in the contents.
        note: a few sentences below it.
        tables: figures; `heat_table` makes one of a matrix.
        plots: rows of figures as SVG text.
        pairs: two pictures each, with a verdict.
        rows: a picture that was asked about and what was found for it, a line each.
        pictures: a sheet of them.
    """

    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[list[str]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    rows: list[PictureRow] = field(default_factory=list)
    pictures: list[ShownPicture] = field(default_factory=list)


def verification_sections(models: Sequence[ModelScores]) -> list[Section]:
    """Accuracy, TAR and error curves of the verification sets."""
    table = tables.verification_table(models)
    if table is None:
        return []
    note = (
        "Same identity or not? Accuracy over ten folds, true accept rate at false accept rates; thresholds are cosines."
    )
    drawn = []
    judged = [(model.name, each) for model in models for each in model.verification if each.accuracy is not None]
    for name, group in by_set(judged).items():
        scores = [(model, result, sort_scores(result.scores, result.same)) for model, result in group]
        curves = [(model or name, roc(ranked, DRAWN_POINTS)) for model, _, ranked in scores]
        spreads = [(model, histogram(ranked, result.threshold)) for model, result, ranked in scores]
        drawn.append(_error_plots(name, curves, spreads))
    return [Section("Verification", note, [table], drawn)]


def ijb_sections(models: Sequence[ModelScores]) -> list[Section]:
    """TAR and error curves of IJB-B and IJB-C."""
    table = tables.ijb_table(models)
    if table is None:
        return []
    drawn = []
    for name, group in by_set([(model.name, each) for model in models for each in model.ijb]).items():
        curves = [(model or name, result.curve) for model, result in group]
        drawn.append(_error_plots(name, curves, [(model, result.scores) for model, result in group]))
    note = "Same identity or not? A template is a person's pictures and frames taken together; scores are cosines."
    return [Section(table.title, note, [table], drawn)]


def _error_plots(name: str, curves: Sequence[tuple[str, Roc]], spreads: Sequence[tuple[str, Histogram]]) -> list[str]:
    return [
        plots.plot_roc(name, curves),
        plots.plot_det(name, curves),
        *(plots.plot_scores(label(model, name), spread) for model, spread in spreads),
    ]


def identification_sections(models: Sequence[ModelScores]) -> list[Section]:
    """Searches of galleries, those of IJB among them."""
    table = tables.identification_table(models)
    if table is None:
        return []
    results = by_set([(model.name, each) for model in models for each in model.searched()])
    note = (
        "Who is it? Every probe against the whole gallery. TPIR is the share of probes found at a threshold where "
        "the stated share of searches for somebody not enrolled finds anybody."
    )
    drawn = [plots.plot_cmc(name, [(model or name, r.cmc) for model, r in group]) for name, group in results.items()]
    return [Section(table.title, note, [table], [drawn])]


def distractor_sections(models: Sequence[ModelScores]) -> list[Section]:
    """Searches among distractors."""
    table = tables.distractor_table(models)
    if table is None:
        return []
    results = by_set([(model.name, each) for model in models for each in model.distractors])
    note = "MegaFace's protocol: every probe's mate hidden among strangers. TAR counts all pairs of probe and stranger."
    drawn = []
    for name, group in results.items():
        drawn.append(
            [
                plots.plot_rank1(name, [(model or name, result.rank1) for model, result in group]),
                plots.plot_cmc(name, [(model or name, result.cmc) for model, result in group]),
            ]
        )
    return [Section(table.title, note, [table], drawn)]


def knn_sections(models: Sequence[ModelScores]) -> list[Section]:
    """Classification by neighbours."""
    table = tables.knn_table(models)
    note = "Each picture is given the label that its nearest others in the set vote for, by exp(cosine / 0.07)."
    return [] if table is None else [Section(table.title, note, [table])]


def hard_sections(models: Sequence[ModelScores]) -> list[Section]:
    """The wrongly decided pairs of every model and set, as pictures."""
    return [
        Section(
            f"Hardest wrong pairs: {label(model.name, result.name)}",
            f"Pairs on the wrong side of the threshold {result.threshold:.3f}, farthest from it first.",
            pairs=[
                {
                    "left": picture_source(pair.left),
                    "right": picture_source(pair.right),
                    "verdict": "taken for different" if pair.same else "taken for the same",
                    "score": f"{pair.score:.3f}",
                    "number": pair.number,
                }
                for pair in result.hard_pairs
            ],
        )
        for model in models
        for result in model.verification
        if result.threshold is not None
    ]
