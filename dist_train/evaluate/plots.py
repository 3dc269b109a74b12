"""Figures of reports as SVG text that takes its ink from the page, so that it suits light and dark."""

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from dist_train.evaluate.curves import Histogram, Roc
from dist_train.evaluate.operating_points import OperatingPoint
from dist_train.evaluate.quality import QualityResult
from dist_train.evaluate.rates import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito (2008): told apart by colour-blind readers. Their orange and sky blue are darker here, so
# that the contrast of a line with a light and a dark page is at least 3 (WCAG 2.2, 1.4.11).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c08600", "#2f93cf", "#8c6d31", "#7f7f7f")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))  # where colour is not enough
_INK = "#010203"  # replaced by the page's own text colour
_SIZE_INCHES = (3.7, 2.6)  # small, so that letters are readable where a phone shows the figure 320 pixels wide
_HISTORY_POINTS = 800
_LINE_POINTS = 400
_RATES = 40  # that one figure has room for
_TITLE, _LABEL = 40, 32  # characters that have room


class Line(NamedTuple):
    """A curve of `plot_lines`, or several points of one.

    Attributes:
        label: what the legend calls it.
        x: rising or falling, [P]; more than 400 points are thinned out.
        y: the same number; what is not a number is a gap.
        low: lower end of an interval around each y, or None.
        high: its upper end.
        reference: drawn thin, in the page's own ink, without a place among the colours: chance, an ideal.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    reference: bool = False


def _figure(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    figure.set_label(title)
    axes = figure.add_subplot()
    # Names of sets and models are text: a dollar sign begins no formula.
    figure.suptitle(cut(title, _TITLE), x=0.01, ha="left", fontsize=10, color=_INK, fontweight="bold", parse_math=False)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8, which="both", width=0.5)
    axes.grid(True, color=_INK, alpha=0.12, linewidth=0.6)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
        spine.set_alpha(0.4)
    return figure, axes


def _legend(axes: "Axes", place: Literal["best", "lower left", "lower right", "upper right"]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:  # the heading names a single one
        return
    if len(labels) <= 4:
        legend = axes.legend(handles, [cut(name, _LABEL) for name in labels], loc=place)
    else:  # it would hide the curves
        figure = cast("Figure", axes.get_figure(root=True))  # axes that are drawn always have one
        rows = -(-len(labels) // 2)
        figure.set_size_inches(_SIZE_INCHES[0], _SIZE_INCHES[1] + 0.17 * rows)
        names = [cut(name, _LABEL * 2 // 3) for name in labels]
        legend = figure.legend(handles, names, loc="outside lower center", ncols=2)
    legend.set_frame_on(False)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontsize(8)
        text.set_color(_INK)


def cut(name: str, most: int) -> str:
    """A name of at most so many characters: both ends of a long one, which tell it from others."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def _svg(figure: "Figure", salt: str) -> str:
    import matplotlib

    text = io.StringIO()
    # The salt keeps the ids of several figures on one page apart, and the same in every run.
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(_INK, "currentColor")
    box = re.search(r'viewBox="[^"]+"', body)
    label = html.escape(str(figure.get_label()))
    opening = f'<svg {_NAMESPACES} {box[0] if box else ""} role="img" aria-label="{label}" class="plot">'
    body = opening + body[body.index(">") + 1 :]
    return re.sub(r"font: ([^;]*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", body)


_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def plot_lines(
    title: str, x: str, y: str, lines: Sequence[Line], *, log_x: bool = False, log_y: bool = False, points: bool = False
) -> str:
    """Curves with intervals as bands, over one axis; on request either axis is logarithmic, and points are marked.

    A logarithm has no place for 0: such values are left out, and bands reach down to the frame.
    """
    figure, axes = _figure(title, x, y)
    coloured = [line for line in lines if not line.reference]
    styles = iter(_styles(len(coloured)))
    marks: dict[str, Any] = {"marker": "o", "markersize": 3.5} if points else {}
    positive: list[float] = []
    for line in lines:
        across, up, low, high = _thinned(line)
        style = {"color": _INK, "linewidth": 0.9, "alpha": 0.55} if line.reference else next(styles) | marks
        if log_y:
            positive += [float(each) for array in (up, low) for each in array[array > 0]]
            up = np.where(up > 0, up, np.nan)
        axes.plot(across, up, label=line.label, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(across, low, high, color=style["color"], alpha=0.18, linewidth=0)
    if log_x:
        axes.set_xscale("log")
    if log_y and positive:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=min(positive) / 1.3)
    elif log_y:
        axes.set_xticks([])
        axes.set_yticks([0])
        axes.text(0.5, 0.5, "nothing above 0", transform=axes.transAxes, ha="center", fontsize=9, color=_INK)
    _legend(axes, "best")
    return _svg(figure, f"lines {title}")


def _thinned(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Its x, y, low and high as float64, at no more than 400 points, the ends among them; nan where it has none."""
    x, y = (np.asarray(each, dtype=float) for each in (line.x, line.y))
    low, high = (np.full(len(y), np.nan) if each is None else np.asarray(each, float) for each in (line.low, line.high))
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _LINE_POINTS)).round().astype(int))
    return x[kept], y[kept], low[kept], high[kept]


def plot_history(
    history: Sequence[dict[str, Any]], key: str, title: str, unit: str, smooth: bool, phases: Sequence[int] = ()
) -> str | None:
    """A training figure over the steps, on request with its running mean; None where fewer than two lines have it.

    The steps of `phases` are marked by vertical lines.
    """
    points = [(row["step"], row[key]) for row in history if isinstance(row.get(key), int | float)]
    if len(points) < 2:
        return None
    steps, values = np.array(points, dtype=float).T
    figure, axes = _figure(title, "step", unit)
    stride = -(-len(steps) // _HISTORY_POINTS)
    window = max(1, len(steps) // 50) if smooth else 1
    mean = np.convolve(np.pad(values, (window - 1, 0), mode="edge"), np.full(window, 1 / window), mode="valid")
    if window > 1:
        axes.plot(steps[::stride], values[::stride], color=COLORS[0], alpha=0.3, linewidth=0.8)
    axes.plot(steps[::stride], mean[::stride], color=COLORS[0], linewidth=1.6)
    for number, step in enumerate(phases, 1):
        if steps[0] <= step <= steps[-1]:
            axes.axvline(step, color=_INK, alpha=0.5, linewidth=0.8, linestyle="--")
            place: dict[str, Any] = {
                "xycoords": axes.get_xaxis_transform(),
                "xytext": (3, 0),
                "textcoords": "offset points",
            }
            axes.annotate(f"phase {number}", (step, 1), **place, fontsize=7, color=_INK, va="top")
    axes.set_xlim(steps[0], steps[-1])
    if values.min() >= 0:
        axes.set_ylim(bottom=0)
    return _svg(figure, f"history {key}")


def plot_roc(name: str, curves: Sequence[tuple[str, Roc]]) -> str:
    """True accept rate over false accept rate, logarithmic; starts at one false accept."""
    figure, axes = _figure(f"ROC: {name}", "false accept rate", "true accept rate")
    lowest, floor = 1.0, 1.0
    for style, (label, curve) in zip(_styles(len(curves)), curves, strict=True):
        seen = curve.far > 0
        axes.plot(curve.far[seen], curve.tar[seen], label=label, **style, drawstyle="steps-post")
        lowest, floor = min(lowest, curve.far[seen].min()), min(floor, curve.tar[seen].min())
    axes.set_xscale("log")
    axes.set_xlim(min(lowest, 0.1), 1)
    axes.set_ylim(max(0.0, floor - 0.05 * (1.02 - floor)), 1 + 0.02 * (1 - floor) + 1e-3)
    _legend(axes, "lower right")
    return _svg(figure, f"roc {name}")


def plot_det(name: str, curves: Sequence[tuple[str, Roc]]) -> str:
    """False reject rate over false accept rate, both logarithmic."""
    figure, axes = _figure(f"DET: {name}", "false accept rate", "false reject rate")
    lowest = 1.0
    drawn = False
    for style, (label, curve) in zip(_styles(len(curves)), curves, strict=True):
        seen = (curve.far > 0) & (curve.tar < 1)
        drawn |= bool(seen.any())
        axes.plot(curve.far[seen], 1 - curve.tar[seen], label=label, **style, drawstyle="steps-post")
        lowest = min(lowest, curve.far[curve.far > 0].min())
    axes.set_xscale("log")
    axes.set_xlim(min(lowest, 0.1), 1)
    if drawn:
        axes.set_yscale("log")
    else:  # a logarithm has no place for it
        axes.set_yticks([0])
        axes.text(0.5, 0.5, "no false rejects", transform=axes.transAxes, ha="center", fontsize=9, color=_INK)
    _legend(axes, "upper right")
    return _svg(figure, f"det {name}")


def plot_operating_points(name: str, curves: Sequence[tuple[str, Roc, Sequence[OperatingPoint]]]) -> str:
    """FNMR over FMR, both logarithmic, with the intervals of the points that a set carries as a band."""
    figure, axes = _figure(f"Operating points: {name}", "false match rate", "false non-match rate")
    lowest, drawn = 0.1, False
    for style, (label, curve, points) in zip(_styles(len(curves)), curves, strict=True):
        seen = (curve.far > 0) & (curve.tar < 1)
        axes.plot(curve.far[seen], 1 - curve.tar[seen], label=label, **style, drawstyle="steps-post")
        carried = [point for point in points if point.resolved]
        rates = [point.fmr for point in carried]
        low, high = ([point.fnmr_low for point in carried], [point.fnmr_high for point in carried])
        axes.fill_between(rates, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.plot(rates, [point.fnmr for point in carried], "o", color=style["color"], markersize=4)
        lowest = min([lowest, *rates])
        drawn |= bool(seen.any())
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1)
    if drawn:
        axes.set_yscale("log", nonpositive="clip")
    _legend(axes, "upper right")
    return _svg(figure, f"points {name}")


def plot_scores(label: str, spread: Histogram) -> str:
    """Histograms of the cosines of both kinds of pairs, and the threshold where there is one."""
    figure, axes = _figure(f"Scores: {label}", "cosine", "share of pairs")
    for color, kind, shares in (
        (COLORS[1], "different identities", spread.different),
        (COLORS[0], "same identity", spread.same),
    ):
        axes.stairs(shares, spread.edges, color=color, fill=True, alpha=0.35)
        axes.stairs(shares, spread.edges, color=color, linewidth=1.2, label=kind)
    if spread.threshold is not None:
        name = f"threshold {spread.threshold:.3f}"
        axes.axvline(spread.threshold, color=_INK, linewidth=1, linestyle="--", label=name)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.35)  # room for the legend
    axes.locator_params(axis="x", nbins=6)
    _legend(axes, "upper right")
    return _svg(figure, f"scores {label}")


def plot_cmc(name: str, curves: Sequence[tuple[str, np.ndarray]]) -> str:
    """Share of probes whose mate is among the first k."""
    figure, axes = _figure(f"CMC: {name}", "rank k", "share with mate in the first k")
    floor = 1.0
    for style, (label, cmc) in zip(_styles(len(curves)), curves, strict=True):
        axes.step(np.arange(1, len(cmc) + 1), cmc, where="post", label=label, **style)
        floor = min(floor, float(cmc[0]))
    axes.set_xscale("log")
    axes.set_xlim(1, max(2, max(len(cmc) for _, cmc in curves)))
    _share_axis(axes, floor)
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    _legend(axes, "lower right")
    return _svg(figure, f"cmc {name}")


def plot_rank1(name: str, curves: Sequence[tuple[str, dict[int, float]]]) -> str:
    """Share of searches whose mate comes first, over the number of distractors."""
    figure, axes = _figure(f"Rank-1: {name}", "distractors", "share with mate first")
    for style, (label, shares) in zip(_styles(len(curves)), curves, strict=True):
        axes.plot(list(shares), list(shares.values()), marker="o", markersize=4, label=label, **style)
    axes.set_xscale("log")
    _share_axis(axes, min(min(shares.values()) for _, shares in curves))
    _legend(axes, "lower left")
    return _svg(figure, f"rank1 {name}")


def plot_discard(name: str, curves: Sequence[tuple[str, QualityResult]], limit: float) -> str:
    """FNMR of the pairs left over the share of pairs discarded, a stair; thin lines are FNMR as it was."""
    figure, axes = _figure(f"Discard: {name}", "share of genuine pairs discarded", "FNMR of those left")
    for style, (label, result) in zip(_styles(len(curves)), curves, strict=True):
        shown = result.stairs.discarded <= limit
        shares, errors = result.stairs.discarded[shown], result.stairs.error[shown]
        axes.step(np.append(shares, limit), np.append(errors, errors[-1]), where="post", label=label, **style)
        axes.axhline(result.fnmr, color=style["color"], linewidth=0.7, alpha=0.6, linestyle="--")
    axes.set_xlim(0, limit)
    axes.set_ylim(bottom=0)
    _legend(axes, "best")
    return _svg(figure, f"discard {name}")


def plot_rates(title: str, kind: str, rates: Sequence[tuple[str, Rate]]) -> str:
    """Rates by name as points with their 95 % intervals, over a logarithmic axis; a rate of 0 is its interval alone.

    The first 40 names are shown.
    """
    figure, axes = _figure(title, kind, "")
    shown = [(name, rate.share, *rate.interval) for name, rate in rates if rate.pairs][:_RATES]
    # Lower ends may be next to nothing.
    lowest = min([share if share > 0 else high for _, share, _, high in shown], default=1e-3) / 30
    for place, (_, share, low, high) in enumerate(shown):
        axes.plot([max(low, lowest), max(high, lowest)], [place, place], color=COLORS[0], alpha=0.5, linewidth=2)
        if share > 0:
            axes.plot([share], [place], marker="o", markersize=5, color=COLORS[0])
    axes.set_xscale("log")
    axes.set_xlim(left=lowest)
    names = [cut(name, _LABEL * 2 // 3) for name, *_ in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.margins(y=0.08)
    axes.invert_yaxis()
    figure.set_figheight(max(_SIZE_INCHES[1], 1.0 + 0.18 * len(shown)))
    return _svg(figure, f"rates {title}")


def _share_axis(axes: "Axes", floor: float) -> None:
    axes.set_ylim(max(0.0, floor - 0.1 * (1.05 - floor)), 1 + 0.02 * (1 - floor) + 1e-3)


def _styles(count: int) -> list[dict[str, Any]]:
    """Colour, dashes and width of each curve; later ones are narrower, so that equal curves are all seen."""
    return [
        {
            "color": COLORS[i % len(COLORS)],
            "linestyle": _DASHES[i % len(_DASHES)],
            "linewidth": 1.5 + (count - 1 - i) * min(1.2, 2.4 / count),
        }
        for i in range(count)
    ]
