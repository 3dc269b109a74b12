"""Pages in a real browser, at the widths of a desk and a phone, light and dark: nothing is cut off, missing or pale."""

import re
from itertools import product
from pathlib import Path

import pytest

from tests.browser.chromium import SCHEMES, WIDTHS, Browser, program
from tests.browser.example import write_examples

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium (make browser)")

FAULTS = (Path(__file__).parent / "faults.js").read_text(encoding="utf-8")
BAD_PAGE = """<!doctype html><body style="background: #fff"><nav><a href="#nowhere">nowhere</a></nav>
<h1 style="width: 900px; display: none">Unseen</h1><p style="width: 700px">wide</p>
<p style="color: #aaa">pale</p><span style="font-size: 6px">small</span>
<img src="data:image/png;base64,AAAA" alt="broken">
<div class="tile"><b style="display: block; width: 9px">long</b></div>
<script>console.error("a complaint")</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("pages"))


def test_every_form_of_a_page_is_whole_and_readable_at_any_width_and_in_either_scheme(browser, pages):
    for path, (width, pixels), scheme in product(pages, WIDTHS.items(), SCHEMES):
        browser.open(path, pixels, scheme)
        faults = [*browser.run(FAULTS), *browser.complaints]
        assert faults == [], f"{path.name}, {width}, {scheme}"
        # Wide tables have room to scroll in, the page itself has none.
        wide = browser.run("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")
        assert wide or width != "phone" or path.stem != "results"
        ink = browser.run("getComputedStyle(document.querySelector('h1')).color")
        assert (min(map(int, re.findall(r"\d+", ink))) > 200) == (scheme == "dark")


def test_a_page_that_is_wrong_in_every_way_is_found_to_be(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(BAD_PAGE, encoding="utf-8")
    browser.open(page, WIDTHS["phone"], "light")
    found = "\n".join([*browser.run(FAULTS), *browser.complaints])
    for fault in (
        "px wide", "does not load: broken", 'not seen: h1 "Unseen"', 'beyond the window: p "wide"', 'cut off: b "long"',
        'leads nowhere: a "nowhere"', "letters of 6.0 px", 'contrast of 2.32: p "pale"', "a complaint",
    ):  # fmt: skip
        assert fault in found


def test_a_page_runs_no_script_and_loads_nothing_even_where_one_were_let_in(browser, pages, tmp_path):
    page = tmp_path / "spoiled.html"
    spoiled = (
        pages[1]
        .read_text(encoding="utf-8")
        .replace(
            "<main>", "<main><script>document.title = 'run'</script><img src='https://example.invalid/x.png' alt=''>"
        )
    )
    page.write_text(spoiled, encoding="utf-8")
    browser.open(page, 1280, "light")
    assert browser.run("document.title") != "run"
    assert sum("Content Security Policy" in complaint for complaint in browser.complaints) == 2
