"""A report as one HTML file: tables, curves and pictures, everything inside, nothing loaded from anywhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from dist_train.evaluate import plots
from dist_train.evaluate.all_pairs import AllPairsResult
from dist_train.evaluate.distractors import DistractorResult
from dist_train.evaluate.group_results import GroupsResult
from dist_train.evaluate.identification import IdentificationResult
from dist_train.evaluate.ijb import IjbResult
from dist_train.evaluate.kinds import result_sections
from dist_train.evaluate.knn import KnnResult
from dist_train.evaluate.plots import cut
from dist_train.evaluate.quality import QualityResult
from dist_train.evaluate.retrieval_set import RetrievalResult
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import ShownPicture, data_uri
from dist_train.evaluate.tables import Cell, ModelScores, Table
from dist_train.evaluate.verification import VerificationResult
from dist_train.objectives.config import ObjectivesConfig
from dist_train.runtime.version import version_of
from dist_train.runtime.written import write_failures, write_text

MOST_PICTURE_BYTES = 24 << 20  # of all pictures on a page, as text
_TEMPLATE = "report.html.jinja"
_HISTORY = (  # key in metrics.jsonl, title, axis, running mean
    ("loss", "Loss", "loss", True),
    ("lr", "Learning rate", "learning rate", False),
    ("images_per_s", "Speed", "images/s", True),
    ("head/target_cosine_mean", "Cosine to the own class center", "mean cosine", True),
    ("gradient_norm", "Gradient of the backbone", "L2 norm", True),
    ("head/gradient_norm", "Gradient of the head", "L2 norm", True),
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
        ijb: results by set.
        distractors: results by set.
        phases: steps at which phases of training begin.
        knn: results by set.
        all_pairs: results by set.
        groups: results by set and column.
        quality: results by set and quality.
        retrieval: results by set.
    """

    title: str
    summary: dict[str, Any]
    history: Sequence[dict[str, Any]] = ()
    verification: Sequence[VerificationResult] = ()
    identification: Sequence[IdentificationResult] = ()
    samples: Sequence[Sample] = ()
    subtitle: str = ""
    ijb: Sequence[IjbResult] = ()
    distractors: Sequence[DistractorResult] = ()
    phases: Sequence[int] = ()
    knn: Sequence[KnnResult] = ()
    all_pairs: Sequence[AllPairsResult] = ()
    groups: Sequence[GroupsResult] = ()
    quality: Sequence[QualityResult] = ()
    retrieval: Sequence[RetrievalResult] = ()

    @cached_property
    def drawn(self) -> list[Section]:
        """The sections with plots and pictures; drawn once, however often the report is written."""
        scores = ModelScores(
            "",
            list(self.verification),
            list(self.identification),
            list(self.ijb),
            list(self.distractors),
            list(self.knn),
            list(self.all_pairs),
            groups=list(self.groups),
            quality=list(self.quality),
            retrieval=list(self.retrieval),
        )
        entries = (*_HISTORY, *self._objectives())
        curves = [plots.plot_history(self.history, *entry, self.phases) for entry in entries]
        return [
            Section("Training", plots=[drawn] if (drawn := [curve for curve in curves if curve]) else []),
            *result_sections([scores]),
            Section("What the network saw", pictures=[_picture(sample) for sample in self.samples]),
        ]

    def _objectives(self) -> list[tuple[str, str, str, bool]]:
        """A curve for the loss of each further term that recipes know: a foreign file could name any number."""
        names = ObjectivesConfig.model_fields
        return [(f"{name}/loss", f"Loss of {name}, without its weight", "loss", True) for name in names]


def write_report(path: Path, run: RunReport) -> None:
    """Write the report of a run to `path`, by rename.

    Raises:
        WorkError: the file cannot be written.
    """
    figures = Section("All figures", tables=[_summary_table(run.summary)] if run.summary else [])
    write_page(path, run.title, [*run.drawn, figures], run.subtitle, _tiles(run))


def write_comparison(path: Path, title: str, models: Sequence[ModelScores], first: Sequence[Table] = ()) -> None:
    """Write several models' results side by side to `path`, by rename, and before them other tables.

    Raises:
        WorkError: the file cannot be written.
    """
    before = [Section(table.title, tables=[table]) for table in first]
    write_page(path, title, [*before, *result_sections(models)], " · ".join(model.name for model in models))


def write_page(
    path: Path, title: str, sections: Sequence[Section], subtitle: str = "", tiles: Sequence[tuple[str, str]] = ()
) -> None:
    """Write sections as one HTML file to `path`, by rename.

    Args:
        path: the file; its directory is made.
        title: headline.
        sections: parts of the page, in order.
        subtitle: a line under the headline.
        tiles: figures that come first, each a value and what it is.

    Raises:
        WorkError: the file cannot be written.
    """
    import jinja2

    shown = _bounded([s for s in sections if s.tables or s.plots or s.pairs or s.rows or s.pictures])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cut"] = cut
    page = environment.get_template(_TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        tiles=tiles,
        sections=shown,
        version=version_of("headcount"),
    )
    with write_failures(f"report {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)


def _bounded(sections: Sequence[Section]) -> list[Section]:
    """The sections with as many pictures, in order, as a browser opens with ease; they say what is left out."""
    room = MOST_PICTURE_BYTES

    def fitting(sources: Iterable[list[str]]) -> int:
        nonlocal room
        count = 0
        for group in sources:
            room -= sum(map(len, group))
            if room < 0:
                break
            count += 1
        return count

    made = []
    for section in sections:
        pairs = section.pairs[: fitting([pair["left"], pair["right"]] for pair in section.pairs)]
        rows = section.rows[: fitting([row.asked.source, *(each.source for each in row.found)] for row in section.rows)]
        pictures = section.pictures[: fitting([picture.source] for picture in section.pictures)]
        before = len(section.pairs) + len(section.rows) + len(section.pictures)
        left_out = before - len(pairs) - len(rows) - len(pictures)
        said = f" {left_out:,} of {before:,} examples are left out: the page is full." if left_out else ""
        made.append(replace(section, note=(section.note + said).strip(), pairs=pairs, rows=rows, pictures=pictures))
    return made


def _tiles(run: RunReport) -> list[tuple[str, str]]:
    """The few figures that come first."""
    tiles = [
        (f"{100 * result.accuracy:.2f} %", f"verification accuracy ± {100 * result.accuracy_std:.2f}, {result.name}")
        for result in run.verification
        if result.accuracy is not None and result.accuracy_std is not None
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


def _summary_table(summary: dict[str, Any]) -> Table:
    rows = []
    for key, value in summary.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[Cell(f"{key} {name}".strip().replace("_", " ")), Cell(_number(each))] for name, each in entries]
    return Table("All figures", ["figure", "value"], rows)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not measured" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _picture(sample: Sample) -> ShownPicture:
    encoded = cv2.imencode(".png", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return ShownPicture(data_uri(encoded), sample.caption)
