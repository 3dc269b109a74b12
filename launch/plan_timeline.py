"""The planned step as a timeline: what runs when on the GPU, on its links and on the host, and a page that draws it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dist_train.errors import UserError
from dist_train.runtime.written import write_text
from launch.plan_advice import advice, other_sizes
from launch.plan_model import Setup, network_bytes
from launch.plan_seconds import exchange_seconds, images_per_second, step_seconds, work_seconds

LANES = ("backbone", "head", "within a machine", "between machines", "host, rows", "host, classes")
MOST_PASSES = 4  # of a step that are drawn one by one; of more, those between the first and the last are drawn as one


class Span(NamedTuple):
    """A piece of work on a timeline.

    Attributes:
        lane: one of `LANES`.
        name: of the work.
        start: seconds from the beginning of the step.
        seconds: that it takes.
    """

    lane: str
    name: str
    start: float
    seconds: float


def spans(setup: Setup) -> list[Span]:
    """The work of a step; the end of the last piece is the length of the step.

    A pass is a forward pass of the backbone, the exchange of embeddings, the head, the backward pass. Gradients are
    exchanged under the last backward pass. Rows from elsewhere go and come under the forward pass, of several passes
    under all of them, as far as that is long enough: what is left stands at the beginning. The host draws the classes
    of the next step under all of this one, which waits for the rest of the draw at its beginning, too.
    """
    return list(_spans(setup))


def _spans(setup: Setup) -> Iterator[Span]:
    work, times = work_seconds(setup), setup.accumulation
    head = (work["head, products"] + work["head, rows and logits"]) / times
    exchange = work["exchange of embeddings"] / times
    parts = network_bytes(setup)
    gradients, gathered = parts["backbone gradient"], parts.get("backbone weights gathered", 0)
    embeddings = sum(parts.values()) - gradients - gathered
    if setup.strategy == "zero3":
        gradients, gathered = gradients + gathered, 0
    now = work["rows waited for"] + step_seconds(setup)["draw of classes"]
    if work["rows moved"]:
        yield Span("host, rows", "rows", 0.0, work["rows moved"])
    if work["classes drawn"]:
        yield Span("host, classes", "classes of the next step", 0.0, work["classes drawn"])
    groups = [1] * times if times <= MOST_PASSES else [1, times - 2, 1]
    for number, passes in enumerate(groups):
        many = f" of {passes} passes" if passes > 1 else ""
        yield Span("backbone", "forward" + many, now, passes * work["forward"])
        now += passes * work["forward"]
        if exchange:
            yield from _exchange(setup, "embeddings" + many, embeddings * passes // times, now, passes * exchange)
            now += passes * exchange
        yield Span("head", "loss, gradients, update" + many, now, passes * head)
        now += passes * head
        yield Span("backbone", "backward" + many, now, passes * work["backward"])
        if number < len(groups) - 1:
            now += passes * work["backward"]
        else:
            yield from _exchange(setup, "gradients", gradients, now, work["gradient exchange"])
            now += max(work["backward"], work["gradient exchange"])
    yield Span("backbone", "update", now, work["update"])
    yield from _exchange(setup, "weights", gathered, now + work["update"], work["weights gathered"])


def _exchange(setup: Setup, name: str, received: int, start: float, seconds: float) -> Iterator[Span]:
    """An exchange on each level; `seconds` is what it takes on the slower one, with its latency."""
    levels = exchange_seconds(setup, received)
    latency = seconds - max(levels.values())
    for level, lane in (("within", "within a machine"), ("between", "between machines")):
        if levels[level]:
            yield Span(lane, name, start, levels[level] + latency)


def write_timeline(path: Path, setup: Setup, text: str) -> None:
    """Write a page that shows a step, the advice and the whole plan; it needs no network and runs no script.

    Args:
        path: of the page.
        setup: the job.
        text: of the plan, for people.

    Raises:
        UserError: the page cannot be written.
    """
    import jinja2

    work = spans(setup)
    whole = max(each.start + each.seconds for each in work)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("plan.html.jinja").render(
        title=f"{setup.identities:,} identities on {setup.gpus} GPUs",
        rate=f"{images_per_second(setup):,.0f}",
        whole=f"{1e3 * whole:,.1f}",
        lanes=list(_drawn(work, whole)),
        ticks=[f"{1e3 * whole * share:,.1f}" for share in (0, 0.25, 0.5, 0.75, 1)],
        advice=list(advice(setup)),
        sizes=list(other_sizes(setup)),
        text=text,
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"--timeline {path}: cannot be written ({error.strerror}); give another path") from error


def _drawn(work: Sequence[Span], whole: float) -> Iterator[dict[str, object]]:
    """Lanes with their bars, left and width in percent of the step's length."""
    for kind, lane in enumerate(LANES):
        here = [each for each in work if each.lane == lane]
        bars = [
            {
                "name": each.name,
                "left": f"{100 * each.start / whole:.3f}",
                "width": f"{100 * each.seconds / whole:.3f}",
                "ms": f"{1e3 * each.seconds:,.2f}",
                "at": f"{1e3 * each.start:,.2f}",
            }
            for each in here
        ]
        if bars:
            busy = sum(each.seconds for each in here)
            yield {"name": lane, "bars": bars, "share": f"{busy / whole:.0%}", "kind": kind}
