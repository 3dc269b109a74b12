"""Names in reports are text: in HTML they stay escaped, in plots no formula is made of them."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dist_train.embed.sheet import Tile, write_sheet
from dist_train.evaluate.report import RunReport, Sample, write_comparison, write_report
from dist_train.evaluate.tables import ModelScores
from tests.evaluate.test_report import identified, verified  # noqa: F401 - fixtures

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "--><script>",
    "]]></style><script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "a $x$ b",
    r"$\frac{",
    "$",
    "&lt;script&gt;",
]


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.attributes, self.text, self.comments = set(), set(), "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += " ".join(value or "" for name, value in attrs if name in ("title", "alt"))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_names_of_runs_sets_models_and_samples_are_shown_as_they_are(tmp_path, verified, identified, name):  # noqa: F811
    verified, identified = replace(verified, name=name), replace(identified, name=name)
    samples = [Sample(np.zeros((8, 8, 3), np.uint8), name)]
    history = [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]
    run = RunReport(name, {name: name, "nested": {name: 1}}, history, [verified], [identified], samples, name)
    write_report(tmp_path / "run.html", run)
    models = [ModelScores(name, [verified], [identified]), ModelScores("other", [verified], [identified])]
    write_comparison(tmp_path / "models.html", name, models)
    for file, least in (("run.html", 8), ("models.html", 6)):
        page = Page((tmp_path / file).read_text(encoding="utf-8"))
        assert not page.elements & {"script", "iframe", "object", "embed", "form"}
        assert not [attribute for attribute in page.attributes if attribute.startswith("on")]
        assert page.text.count(name) >= least, page.text.count(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_sheet_of_matches_has_titles_and_captions_of_any_name(tmp_path, name):
    tile = Tile(np.zeros((8, 8, 3), np.uint8), [name])
    write_sheet(tmp_path / "sheet.png", [tile], [tile, tile], title=name)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
