"""A page to look findings through: pictures side by side, and boxes that strike out what is no fault.

The page holds all that it shows and loads nothing. What was struck out is saved as a file, for `--except`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2

from dist_train.clean.cores import Cores
from dist_train.clean.find import central_rows
from dist_train.clean.finding import KINDS, Findings
from dist_train.clean.likeness import ReadFn
from dist_train.data.pictures import PictureError, check, decode_checked
from dist_train.errors import WorkError
from dist_train.evaluate.shown_pictures import UNREADABLE, data_uri
from dist_train.runtime.written import written_output

MOST_SHOWN = 200
"""Findings of each kind on the page."""
_BESIDE = 4  # pictures of an identity that are shown beside
_SIDE_PX = 96
_QUALITY = 80  # of JPEG

_SECTIONS = {
    "outlier": ("Wrong labels", "The marked picture is nearer to another identity than to the others of its own."),
    "merge": (
        "Identities that are one",
        "Two labels whose pictures have one center; the first joins the other.",
    ),
    "duplicate": ("Pictures that are there twice", "The marked picture goes, the other stays."),
    "test": ("Pictures of a test set", "The picture is in a test set, so that a result on that would mean little."),
}


class Group(NamedTuple):
    """Pictures side by side under a caption; `asked` are those that the finding is about."""

    caption: str
    pictures: list[dict[str, str]]
    asked: bool = False


def write_sheet(path: Path, name: str, findings: Findings, cores: Cores, read: ReadFn, notes: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        name: of the set.
        findings: all; the first of each kind are shown.
        cores: of the set's identities.
        read: gives a picture's bytes.
        notes: lines at the top, e.g. by which thresholds they were found.

    Raises:
        WorkError: the disk refuses.
    """
    drawn = _Drawing(cores, read)
    sections: list[dict[str, Any]] = []
    kinds = findings.table["kind"].to_numpy(zero_copy_only=False)
    for kind in KINDS:
        at = (kinds == kind).nonzero()[0]
        if len(at):
            rows = findings.table.take(at[:MOST_SHOWN]).to_pylist()
            title, note = _SECTIONS[kind]
            shown = [{**row, "text": _text(row), "groups": drawn.groups(row)} for row in rows]
            sections.append({"title": title, "note": note, "count": len(at), "findings": shown})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dist_train.clean", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("sheet.html.jinja").render(
        name=name,
        digest=findings.digest,
        notes=notes,
        sections=sections,
        shown=sum(len(section["findings"]) for section in sections),
    )
    with written_output(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _text(row: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["names"]))
    return f"{' and '.join(names)}: {row['evidence']}"


class _Drawing:
    """The pictures of findings; each identity's central ones are looked for once."""

    def __init__(self, cores: Cores, read: ReadFn) -> None:
        self._cores, self._read = cores, read
        self._central: dict[int, list[int]] = {}

    def groups(self, row: dict[str, Any]) -> list[Group]:
        if row["kind"] == "merge":
            return [self._identity(label, name) for label, name in zip(row["labels"], row["names"], strict=True)]
        groups = [self._pictures(row["keys"][0], row["rows"][:1], asked=True)]
        if row["kind"] == "duplicate":
            groups.append(self._pictures(row["keys"][1], row["rows"][1:]))
        elif row["kind"] == "outlier":
            groups.append(self._identity(row["labels"][0], row["names"][0], without=row["rows"][0]))
            if row["near_label"] >= 0:
                groups.append(self._identity(row["near_label"], f"nearest other: {row['near_name']}"))
        return groups

    def _identity(self, label: int, caption: str, without: int = -1) -> Group:
        if label not in self._central:
            self._central[label] = central_rows(self._cores, label, _BESIDE + 1)
        return self._pictures(caption, [row for row in self._central[label] if row != without][:_BESIDE])

    def _pictures(self, caption: str, rows: Sequence[int], asked: bool = False) -> Group:
        return Group(caption, [{"src": self._source(row), "alt": f"picture {row}"} for row in rows], asked)

    def _source(self, row: int) -> str:
        try:
            data = self._read(row)
            check(data)
            pixels = decode_checked(data)
        except (PictureError, WorkError):  # one that cannot be shown is no reason to have no page
            return UNREADABLE
        share = _SIDE_PX / max(pixels.shape[:2])
        if share < 1:
            pixels = cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        return data_uri(encoded.tobytes())
