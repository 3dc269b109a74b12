"""The picture `report.png` of a job: photos with the faces in them, their crops, and the job's figures."""

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.job.plan import JobFiles, JobPlan
from data_prep.job.report_samples import PHOTO_PX, Pair, Pixels, drawable, shown_pairs, units_read
from data_prep.job.unit_files import MADE, read_mark, read_rejects, read_statistics
from data_prep.job.work import STATISTICS
from data_prep.transforms import Keep
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME, Manifest, load_manifest
from dist_train.data.reject import REJECTS_NAME, counted
from dist_train.runtime.written import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

REPORT_NAME = "report.png"
COLUMNS, ROWS = 5, 3  # pairs of photo and crop on the sheet
BAR_REASONS = 3  # from this number of reasons on they are drawn as bars; fewer are written in words
_GAP_PX = 6
_BINS = 40
_WIDE_RANGE = 20  # ratio of largest to least value from which a histogram's bins grow with the value
_COLOR = "#2457a6"


class Figures(NamedTuple):
    """The figures that the report draws.

    Attributes:
        sides: longer sides of the faces that were cut out, in pixels of their photos.
        scores: scores of the faces that were cut out.
        reasons: counts of all rejects by reason.
    """

    sides: NDArray[np.float64]
    scores: NDArray[np.float64]
    reasons: Counter[str]


class Pace(NamedTuple):
    """Speed of a job: inputs a second while any process worked, and the largest number of processes at work at once."""

    inputs_per_s: float
    processes: int


def write_report(out: Path) -> Path:
    """Draw `report.png` into the directory of a complete set; return its path."""
    from matplotlib.figure import Figure

    plan, manifest = JobPlan(JobFiles(out)), load_manifest(out)
    pairs, found = shown_pairs(plan, manifest, COLUMNS * ROWS), figures(plan)
    rows = -(-len(pairs) // COLUMNS)
    heights = [0.66, 1.62 * rows, 2.6]  # size in inches
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    head, sheet, charts = np.asarray(figure.subfigures(3, 1, height_ratios=heights)).tolist()
    _write_head(head, plan, manifest, found.reasons, close=any(pair.close_call for pair in pairs))
    _draw_pairs(sheet, pairs, rows)
    _draw_charts(charts, plan, found)
    path = out / REPORT_NAME
    with warnings.catch_warnings(), written(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # characters that the font lacks are boxes
        figure.savefig(file, dpi=150, format="png")
    return path


def _write_head(head: "SubFigure", plan: JobPlan, manifest: Manifest, reasons: Counter[str], close: bool) -> None:
    """Write the headline: counts of inputs and pictures, speed, and the reasons of rejects where they are few."""
    speed = pace(plan)
    workers = f"{speed.processes} worker{'' if speed.processes == 1 else 's'}"
    told = f" at {speed.inputs_per_s:,.3g} a second ({workers})" if speed.processes else ""
    lines = []
    if len(reasons) < BAR_REASONS:
        lines.append(f"Left out: {counted(reasons) or 'none'}.")
    if close:
        lines.append(
            "First the photos where another face (orange) was nearly chosen; lead: over that face, in "
            f"{'score' if getattr(plan.options.transform, 'faces', '') == 'surest' else 'areas of the chosen one'}."
        )
    title = (
        f"{drawable(plan.layout.out.name)}: {manifest.samples:,} pictures of {manifest.num_classes:,} identities "
        f"out of {plan.rows_total:,} inputs{told}"
    )
    head.text(0.01, 0.78, title, fontsize=13, va="center", parse_math=False)
    head.text(0.01, 0.3, " ".join(lines), fontsize=9, va="center", parse_math=False)


def _draw_pairs(sheet: "SubFigure", pairs: list[Pair], rows: int) -> None:
    cells = sheet.subplots(max(rows, 1), COLUMNS, squeeze=False).flat
    for number, axes in enumerate(cells):
        axes.axis("off")
        if number < len(pairs):
            axes.imshow(_tile(pairs[number]))
            axes.set_title(pairs[number].title, loc="left", fontsize=7.5, pad=3, parse_math=False)


def _tile(pair: Pair) -> Pixels:
    """Photo and crop side by side on white, [PHOTO_PX, 2 PHOTO_PX + gap, 3]."""
    tile = np.full((PHOTO_PX, 2 * PHOTO_PX + _GAP_PX, 3), 255, np.uint8)
    if pair.photo is not None:
        height, width = pair.photo.shape[:2]
        top = (PHOTO_PX - height) // 2
        tile[top : top + height, PHOTO_PX - width : PHOTO_PX] = pair.photo
    tile[:, PHOTO_PX + _GAP_PX :] = cv2.resize(pair.crop, (PHOTO_PX, PHOTO_PX), interpolation=cv2.INTER_AREA)
    return tile


def _draw_charts(charts: "SubFigure", plan: JobPlan, found: Figures) -> None:
    counts = read_identities(plan.layout.out / IDENTITIES_NAME, "count")["count"].to_numpy()
    bars = len(found.reasons) >= BAR_REASONS
    axes = charts.subplots(1, 3 + bars, squeeze=False)[0]
    nothing = "not looked for" if isinstance(plan.options.transform, Keep) else "none"
    histogram(axes[0], found.sides, "Longer side of faces", "pixels of the photo", nothing)
    histogram(axes[1], found.scores, "Score of faces", "certainty", nothing)
    histogram(axes[2], counts[counts > 0].astype(np.float64), "Pictures of an identity", "pictures", nothing, 1)
    if bars:
        names = [name for name, _ in found.reasons.most_common()][::-1]
        labels = [f"{name}  {found.reasons[name]:,}" for name in names]
        axes[3].barh(labels, [found.reasons[name] for name in names], color=_COLOR, log=True)
        axes[3].set_xlim(left=0.7)
        axes[3].set_title("Inputs left out, by reason", loc="left", fontsize=10)
        axes[3].spines[["top", "right"]].set_visible(False)


def histogram(
    axes: "Axes", values: NDArray[np.float64], title: str, unit: str, nothing: str, step: float | None = None
) -> None:
    """Draw a histogram with logarithmic counts, so that rare values are visible; `step`: between possible values."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(unit, fontsize=9)
    axes.tick_params(labelsize=8)
    if not len(values):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, nothing, ha="center", transform=axes.transAxes)
        return
    least, most = float(values.min()), float(values.max())
    if least > 0 and most >= _WIDE_RANGE * least:
        edges = np.geomspace(least, most, _BINS + 1)
        if step:  # every bin holds a possible value
            edges = np.append(np.unique(np.ceil(edges[:-1] / step)) * step, most + step) - step / 2
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    elif step and most - least < _BINS * step:
        edges = np.arange(least - step / 2, most + step, step)
        axes.locator_params(axis="x", integer=True)
    else:
        beside = 0.0 if most > least else 0.05 * abs(least) or 0.5
        edges = np.linspace(least - beside, most + beside, _BINS + 1)
    axes.hist(values, bins=edges, color=_COLOR, log=True)  # type: ignore[arg-type]  # the stubs want a list
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter("{x:,g}")


def figures(plan: JobPlan) -> Figures:
    """Sides and scores of the faces that were cut out, and the reasons of all rejects."""
    sides, scores = [np.empty(0)], [np.empty(0)]
    for unit in units_read(plan):
        table = read_statistics(plan.layout.statistics(unit), ["face_px", "score"], STATISTICS)
        for name, found in (("face_px", sides), ("score", scores)):
            flat = table[name].combine_chunks().flatten().drop_null()
            found.append(flat.to_numpy(zero_copy_only=False).astype(np.float64))
    rejects = read_rejects(plan.layout.out / REJECTS_NAME)["reason"]
    return Figures(np.concatenate(sides), np.concatenate(scores), Counter(rejects.to_pylist()))


def pace(plan: JobPlan) -> Pace:
    """Speed of the whole job, over the time in which at least one process worked on a unit.

    A pause before the job was continued does not count, and processes that worked at the same time count once.
    """
    marks = [plan.layout.done(unit) for unit in range(plan.units)]
    done = [read_mark(mark, MADE) for mark in marks if mark.exists()]
    timed = [unit for unit in done if "ended" in unit]  # marks of older units hold no time
    events = sorted(event for unit in timed for event in ((unit["ended"] - unit["seconds"], 1), (unit["ended"], -1)))
    busy_s, at_work, most, before = 0.0, 0, 0, 0.0
    for at, change in events:
        busy_s += at - before if at_work else 0.0
        at_work, before = at_work + change, at
        most = max(most, at_work)
    return Pace(sum(unit["given"] for unit in timed) / max(1e-9, busy_s), most)
