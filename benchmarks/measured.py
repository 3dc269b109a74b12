"""The tables of docs/measured.md and the README's measured lines: `python -m benchmarks.measured`, or `make measured`.

Claims and their words are in benchmarks/claims.yaml. Figures come from benchmarks/results.jsonl, which the benchmarks
write, and from benchmarks/elsewhere.jsonl, which is kept by hand. A page has places for them, `<!-- begin NAME -->`
to `<!-- end NAME -->`; what lies between is written here, and the rest of the page is left as it is.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy import table as accuracy_table
from dist_train.section import Section

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "benchmarks/claims.yaml"
BY_MACHINE, BY_HAND = ROOT / "benchmarks/results.jsonl", ROOT / "benchmarks/elsewhere.jsonl"
PAGES = {"docs/measured.md": ROOT / "docs/measured.md", "README.md": ROOT / "README.md"}
ACCURACY = {"accuracy": ROOT / "benchmarks/accuracy.jsonl", "accuracy-7500": ROOT / "benchmarks/accuracy-7500.jsonl"}
NOT_RECORDED = "not recorded"
HAND_MARK = "‡"

Line = dict[str, Any]


class Figure(Section):
    """One number of a claim, and the words around it."""

    say: str
    key: str
    times: float = 1.0
    digits: int = 0
    scientific: bool = False

    def over(self, lines: list[Line]) -> str | None:
        """The words around the range of the lines' values; None where no line has the key."""
        values = [found * self.times for line in lines if (found := look_up(line, self.key)) is not None]
        if not values:
            return None
        ends = [self._text(min(values)), self._text(max(values))]
        return self.say.format(" to ".join(dict.fromkeys(ends)))

    def _text(self, value: float) -> str:
        if self.scientific:
            return f"{value:.0e}".replace("e-0", "e-")
        return f"{round(value, self.digits):,.{max(self.digits, 0)}f}"


class FirstLine(Section):
    """A claim's line in the README."""

    what: str
    figure: int


class Claim(Section):
    """Something measured: which lines hold it, and what is said of it."""

    section: str
    what: str
    command: str | None = None
    lines: tuple[dict[str, Any], ...]
    figures: tuple[Figure, ...]
    first: FirstLine | None = None

    def covers(self, line: Line) -> bool:
        """Whether a line belongs to this claim."""
        return any(all(look_up(line, key) == value for key, value in wanted.items()) for wanted in self.lines)


def look_up(line: Line, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    value: Any = line
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read_lines() -> list[Line]:
    """All lines, those kept by hand marked with `by_hand`."""
    lines = []
    for path in (BY_MACHINE, BY_HAND):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = {**json.loads(text), "by_hand": path == BY_HAND}
            if "matched" in line:
                line["differing"] = line["faces"] - line["matched"] + line["extra"]
            lines.append(line)
    return lines


def read_claims() -> list[Claim]:
    """The claims in the order of their file."""
    return [Claim.model_validate(claim) for claim in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))]


def processor_of(line: Line) -> str:
    """The processor without stepping and cores, in which two machines of one kind may differ."""
    return re.sub(r", (stepping \d+|\d+ cores)", "", line.get("processor") or NOT_RECORDED)


def runs_of(lines: list[Line]) -> str:
    """How many lines there are, and how many of them are kept by hand."""
    by_hand = sum(line["by_hand"] for line in lines)
    if by_hand in (0, len(lines)):
        return f"{len(lines)} {HAND_MARK}" if by_hand else str(len(lines))
    return f"{len(lines)}, {by_hand} of them {HAND_MARK}"


def section_table(claims: list[Claim], lines: list[Line]) -> str:
    """Rows of a section's claims, one for each processor: figures, number of runs."""
    rows = ["| what | figure | runs | processor |", "| --- | --- | --- | --- |"]
    for claim in claims:
        groups: dict[str, list[Line]] = {}
        for line in filter(claim.covers, lines):
            groups.setdefault(processor_of(line), []).append(line)
        what = f"{claim.what}: `{claim.command}`" if claim.command else claim.what
        for processor, group in groups.items():
            said = "; ".join(filter(None, (figure.over(group) for figure in claim.figures)))
            rows.append(f"| {what} | {said} | {runs_of(group)} | {processor} |")
            what = ""
    return "\n".join(rows)


def first_table(claims: list[Claim], lines: list[Line]) -> str:
    """The README's rows: the range over all processors."""
    rows = ["| | measured | in |", "| --- | --- | --- |"]
    for claim in claims:
        if claim.first is None:
            continue
        figure, known = claim.figures[claim.first.figure], [line for line in lines if claim.covers(line)]
        measured = [line for line in known if look_up(line, figure.key) is not None]
        processors = len({processor_of(line) for line in measured})
        runs = f"{len(measured)} run{'s' * (len(measured) > 1)}, {processors} processor{'s' * (processors > 1)}"
        rows.append(f"| {claim.first.what} | {figure.over(measured)} | {runs} |")
    return "\n".join(rows)


def parts() -> dict[str, str]:
    """What belongs between the marks, by name."""
    claims, lines = read_claims(), read_lines()
    measured = [claim for claim in claims if any(map(claim.covers, lines))]
    names = list(dict.fromkeys(claim.section for claim in claims))
    found = {name: section_table([claim for claim in measured if claim.section == name], lines) for name in names}
    found["first"] = first_table(measured, lines)
    missing = [f"- {claim.what}: `{claim.command}`" for claim in claims if claim not in measured]
    found["missing"] = "\n".join(missing) or "Every claim of `benchmarks/claims.yaml` has a run."
    for name, path in ACCURACY.items():
        found[name] = accuracy_table([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    return found


def unclaimed(claims: list[Claim], lines: list[Line]) -> Iterator[Line]:
    """Lines that no claim reads."""
    return (line for line in lines if not any(claim.covers(line) for claim in claims))


def fill(page: str, found: dict[str, str], name: str) -> str:
    """The page's text with every marked place filled.

    Args:
        page: text with `<!-- begin NAME -->` and `<!-- end NAME -->`.
        found: what belongs there, by NAME.
        name: of the page, for messages.

    Raises:
        ValueError: a place has a name that nothing belongs to, or no end.
    """

    def filled(match: re.Match[str]) -> str:
        if match[1] not in found:
            raise ValueError(f"{name}: nothing is measured for the place {match[1]!r}; there are {', '.join(found)}")
        return f"<!-- begin {match[1]} -->\n{found[match[1]]}\n<!-- end {match[1]} -->"

    text, count = re.subn(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", filled, page, flags=re.DOTALL)
    if count != page.count("<!-- begin "):
        raise ValueError(f"{name}: {page.count('<!-- begin ')} places begin and {count} end; mark both")
    return text


def main() -> None:
    """Write both pages.

    Raises:
        SystemExit: a line belongs to no claim, so that no page would show it.
    """
    found = parts()
    for line in unclaimed(read_claims(), read_lines()):
        sys.exit(f"{line['benchmark']} {line['case']}: no claim of {CLAIMS.name} reads this line; add one")
    for name, path in PAGES.items():
        path.write_text(fill(path.read_text(encoding="utf-8"), found, name), encoding="utf-8")


if __name__ == "__main__":
    main()
