"""A report as one HTML file: tables, curves and pictures, everything inside, nothing loaded from anywhere."""

import base64
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from dist_train.errors import WorkError
from dist_train.evaluate import plots
from dist_train.evaluate.identification import IdentificationResult
from dist_train.evaluate.verification import VerificationResult

_TEMPLATE = "report.html.jinja"
_HISTORY = (  # key in metrics.jsonl, title, axis, running mean
    ("loss", "Loss", "loss", True),
    ("lr", "Learning rate", "learning rate", False),
    ("images_per_s", "Speed", "images/s", True),
    ("head/target_cosine_mean", "Cosine to the own class center", "mean cosine", True),
    ("gradient_norm", "Gradient of the backbone", "L2 norm", True),
)


class Sample(NamedTuple):
    """A picture for the sheet.

    Attributes:
        image: uint8 [H, W, 3], red first.
        caption: a few words.
    """

    image: np.ndarray
    caption: str


@dataclass(frozen=True)
class RunReport:
    """What the report of a run shows.

    Attributes:
        title: headline.
        summary: figures in order; values are numbers, text, or dicts of those.
        history: lines of metrics.jsonl.
        verification: results by set.
        identification: results by set.
        samples: pictures as the network saw them.
        subtitle: a line under the headline.
    """

    title: str
    summary: dict[str, Any]
    history: Sequence[dict[str, float]] = ()
    verification: Sequence[VerificationResult] = ()
    identification: Sequence[IdentificationResult] = ()
    samples: Sequence[Sample] = ()
    subtitle: str = ""


@dataclass(frozen=True)
class ModelScores:
    """One model's results, for a comparison."""

    name: str
    verification: Sequence[VerificationResult] = ()
    identification: Sequence[IdentificationResult] = ()


class Cell(NamedTuple):
    """A cell of a table; `best` marks the best of its column."""

    text: str
    best: bool = False


@dataclass
class Section:
    """A part of the page; what is empty is not shown."""

    title: str
    note: str = ""
    tables: list[dict[str, list[Any]]] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)


def write_report(path: Path, run: RunReport) -> None:
    """Write the report of a run to `path`, by rename.

    Raises:
        WorkError: the file cannot be written.
    """
    scores = [ModelScores("", run.verification, run.identification)]
    curves = [plots.plot_history(run.history, *entry) for entry in _HISTORY]
    sections = [
        Section("Training", plots=[curve for curve in curves if curve]),
        *_verification_sections(scores),
        *_identification_sections(scores),
        Section("What the network saw", pictures=[_picture(sample) for sample in run.samples]),
        *_hard_sections(scores),
        Section("All figures", tables=[_summary_table(run.summary)] if run.summary else []),
    ]
    _write(path, run.title, run.subtitle, _tiles(run), sections)


def write_comparison(path: Path, title: str, models: Sequence[ModelScores]) -> None:
    """Write several models' results side by side to `path`, by rename.

    Raises:
        WorkError: the file cannot be written.
    """
    subtitle = " · ".join(model.name for model in models)
    sections = [*_verification_sections(models), *_identification_sections(models), *_hard_sections(models)]
    _write(path, title, subtitle, [], sections)


def _write(path: Path, title: str, subtitle: str, tiles: list[tuple[str, str]], sections: Sequence[Section]) -> None:
    import jinja2

    shown = [s for s in sections if s.tables or s.plots or s.pairs or s.pictures]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(_TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        tiles=tiles,
        sections=shown,
        version=importlib.metadata.version("headcount"),
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"report {path}: cannot be written: {error.strerror}") from error


def _tiles(run: RunReport) -> list[tuple[str, str]]:
    """The few figures that come first."""
    tiles = [
        (f"{100 * result.accuracy:.2f} %", f"verification accuracy ± {100 * result.accuracy_std:.2f}, {result.name}")
        for result in run.verification
    ]
    tiles += [(f"{100 * result.rank1:.2f} %", f"rank-1 identification, {result.name}") for result in run.identification]
    for key, label in (
        ("identities", "identities"),
        ("images", "pictures"),
        ("ranks", "ranks"),
        ("images_per_s", "images/s"),
        ("seconds", "seconds in all"),
        ("onnx_max_abs_diff", "largest ONNX difference"),
    ):
        if isinstance(run.summary.get(key), int | float):
            tiles.append((_number(run.summary[key]), label))
    return tiles


def _verification_sections(models: Sequence[ModelScores]) -> list[Section]:
    labelled = [(_label(m.name, r.name), r) for m in models for r in m.verification]
    if not labelled:
        return []
    fars = list(dict.fromkeys(far for _, result in labelled for far in result.tar_at_far))
    rows, coarse = [], False
    for label, result in labelled:
        tars = [result.tar_at_far.get(far) for far in fars]
        coarse |= any(tar is not None and not tar.resolved for tar in tars)
        rows.append(
            [
                label,
                f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
                *("" if t is None else f"{100 * t.tar:.2f}{'' if t.resolved else ' *'}" for t in tars),
                f"{result.threshold:.3f}",
                f"{result.mean_norm:.2f}",
                f"{len(result.same):,}",
                f"{int((~result.same).sum()):,}",
            ]
        )
    heads = ["set", "accuracy %", *(f"TAR % at {_rate(far)}" for far in fars), "threshold", "mean norm", "pairs"]
    note = (
        "Same identity or not? Accuracy over ten folds, true accept rate at false accept rates; thresholds are cosines."
    )
    if coarse:
        note += " * The set has fewer than one expected false accept at this FAR: the TAR is that of none."
    groups = _by_set(models, "verification")
    return [
        Section(
            "Verification",
            note,
            tables=[_table([*heads, "negatives"], rows, best=range(1, 2 + len(fars)), groups=_sets(labelled))],
            plots=[
                plot
                for name, group in groups.items()
                for plot in (
                    plots.plot_roc(group, name),
                    plots.plot_det(group, name),
                    *(plots.plot_scores(label, result, f"{label} {name}") for label, result in group),
                )
            ],
        )
    ]


def _identification_sections(models: Sequence[ModelScores]) -> list[Section]:
    labelled = [(_label(m.name, r.name), r) for m in models for r in m.identification]
    if not labelled:
        return []
    fpirs = list(dict.fromkeys(fpir for _, result in labelled for fpir in result.tpir_at_fpir))
    rows = []
    for label, result in labelled:
        tpirs = [result.tpir_at_fpir.get(fpir, float("nan")) for fpir in fpirs]
        rows.append(
            [
                label,
                f"{100 * result.rank1:.2f}",
                f"{100 * result.rank5:.2f}",
                *("too few searches" if np.isnan(tpir) else f"{100 * tpir:.2f}" for tpir in tpirs),
                f"{result.probes:,}",
                f"{result.gallery:,}",
            ]
        )
    heads = ["set", "rank-1 %", "rank-5 %", *(f"TPIR % at {_rate(fpir)}" for fpir in fpirs), "probes", "gallery"]
    return [
        Section(
            "Identification",
            "Who is it? Every probe against the whole gallery. TPIR is the share of probes found at a threshold where "
            "the stated share of searches for somebody not enrolled finds anybody.",
            tables=[_table(heads, rows, best=range(1, 3 + len(fpirs)), groups=_sets(labelled))],
            plots=[plots.plot_cmc(group, name) for name, group in _by_set(models, "identification").items()],
        )
    ]


def _hard_sections(models: Sequence[ModelScores]) -> list[Section]:
    return [
        Section(
            f"Hardest wrong pairs: {_label(model.name, result.name)}",
            f"Pairs on the wrong side of the threshold {result.threshold:.3f}, farthest from it first.",
            pairs=[
                {
                    "left": _data_uri(pair.left),
                    "right": _data_uri(pair.right),
                    "verdict": "taken for different" if pair.same else "taken for the same",
                    "score": f"{pair.score:.3f}",
                    "number": pair.number,
                }
                for pair in result.hard_pairs
            ],
        )
        for model in models
        for result in model.verification
    ]


def _by_set(models: Sequence[ModelScores], kind: str) -> dict[str, list[tuple[str, Any]]]:
    """Results by set, each with the name of its model, or of its set where there is only one model."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for model in models:
        for result in getattr(model, kind):
            groups.setdefault(result.name, []).append((model.name or result.name, result))
    return groups


def _rate(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-")


def _label(model: str, dataset: str) -> str:
    return f"{dataset} · {model}" if model else dataset


def _sets(labelled: Sequence[tuple[str, Any]]) -> list[str]:
    return [result.name for _, result in labelled]


def _table(heads: list[str], rows: list[list[str]], best: range, groups: list[str]) -> dict[str, list[Any]]:
    """A table whose `best` columns mark the largest value among several rows of the same group."""
    cells = [[Cell(text) for text in row] for row in rows]
    for group in dict.fromkeys(groups):
        members = [number for number, each in enumerate(groups) if each == group]
        for column in best if len(members) > 1 else ():
            top = max(_leading(rows[number][column]) for number in members)
            for number in members:
                cells[number][column] = Cell(rows[number][column], _leading(rows[number][column]) == top)
    return {"heads": heads, "rows": cells}


def _leading(text: str) -> float:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return float("-inf")


def _summary_table(summary: dict[str, Any]) -> dict[str, list[Any]]:
    rows = []
    for key, value in summary.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[Cell(f"{key} {name}".strip().replace("_", " ")), Cell(_number(each))] for name, each in entries]
    return {"heads": ["figure", "value"], "rows": rows}


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not measured" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _picture(sample: Sample) -> dict[str, str]:
    encoded = cv2.imencode(".png", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return {"source": _data_uri(encoded), "caption": sample.caption}


def _data_uri(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "webp" if encoded[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
