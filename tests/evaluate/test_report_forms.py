"""The general forms of a report's parts: matrices, curves with intervals, pictures within bounds."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from dist_train.evaluate import report
from dist_train.evaluate.heat_table import MOST_NAMES, heat_table
from dist_train.evaluate.plots import COLORS, Line, cut, plot_lines
from dist_train.evaluate.report import write_page
from dist_train.evaluate.sections import Section
from dist_train.evaluate.shown_pictures import MOST_BYTES, PictureRow, ShownPicture, shown
from tests.browser.example import picture


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    levels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_lines_stand_out_on_light_and_dark_cards():
    template = (Path(report.__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    cards = re.findall(r"--card: (#\w{6})", template)
    assert len(cards) == 2
    for color in COLORS:
        for card in cards:
            low, high = sorted((luminance(color), luminance(card)))
            assert (high + 0.05) / (low + 0.05) >= 3, f"{color} on {card}"


def test_a_matrix_is_shaded_from_its_smallest_value_to_its_largest():
    table = heat_table("m", "", ["a", "b"], ["x", "y"], [[1.0, 2.0], [None, 5.0]], "{:g}".format)
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "1", "2"], ["b", "-", "5"]]
    assert [cell.shade for row in table.rows for cell in row[1:]] == [0, 0.25, 0, 1]


def test_a_logarithmic_matrix_leaves_zero_and_what_is_no_number_without_shade():
    values = [[1e-5, 1e-3, 1e-1], [0.0, math.nan, math.inf]]
    table = heat_table("m", "", ["a", "b"], ["x", "y", "z"], values, "{:g}".format, log=True)
    assert [cell.shade for cell in table.rows[0][1:]] == pytest.approx([0, 0.5, 1])
    assert [(cell.text, cell.shade) for cell in table.rows[1][1:]] == [("0", 0), ("-", 0), ("-", 0)]


def test_a_matrix_of_equal_values_or_of_none_has_no_shades():
    for values in ([[7.0, 7.0]], [[None, None]]):
        assert {cell.shade for cell in heat_table("m", "", ["a"], ["x", "y"], values, str).rows[0]} == {0}


def test_a_large_matrix_is_cut_and_says_so():
    many = [str(i) for i in range(1000)]
    table = heat_table("m", "", many, many, [[0.5] * 1000] * 1000, str)
    assert (len(table.rows), len(table.rows[0]), len(table.heads)) == (MOST_NAMES, MOST_NAMES + 1, MOST_NAMES + 1)
    assert table.notes == ["The first 30 of 1,000 rows are shown.", "The first 30 of 1,000 columns are shown."]


def test_curves_have_bands_gaps_and_a_bounded_number_of_points():
    x = np.linspace(0, 1, 100_000)
    wavy = np.sin(50 * x) + 2
    wavy[1000:2000] = np.nan
    drawn = plot_lines("waves", "x", "y", [Line("a <b>", x, wavy, wavy - 1, wavy + 1), Line("c", x, x, reference=True)])
    assert len(drawn) < 100_000
    assert "a &lt;b&gt;" in drawn
    assert 'id="FillBetweenPolyCollection' in drawn
    assert "nan" not in drawn.lower()


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, math.nan]])
def test_a_logarithm_without_any_value_above_0_says_so(values):
    drawn = plot_lines("none", "x", "y", [Line("a", [1e-3, 1e-1], values)], log_x=True, log_y=True)
    assert "nothing above 0" in drawn


def test_both_ends_of_a_long_name_are_shown():
    assert cut("short", 10) == "short"
    assert cut("abcdefghijklmnop", 10) == "abcd…lmnop"


def test_large_pictures_are_scaled_and_what_is_no_picture_is_a_grey_square():
    noise = np.random.default_rng(0).integers(0, 256, (600, 400, 3), np.uint8)
    large = report.cv2.imencode(".png", noise)[1].tobytes()
    assert len(shown(large, "").source) < MOST_BYTES < len(large)
    assert shown(picture(1), "").source.startswith("data:image/png;base64,")
    for foreign in (b"", b"<svg onload='alert(1)'/>", large[:1000]):
        assert "onload" not in shown(foreign, "").source
        assert shown(foreign, "").source.startswith("data:image/svg+xml,%3Csvg")


def test_a_full_page_says_how_many_pictures_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_PICTURE_BYTES", 1000)
    one = ShownPicture("data:image/png;base64," + "A" * 178, "")  # 200 characters
    rows = [PictureRow(one, [one])] * 2
    sections = [Section("Rows", "A note.", rows=rows), Section("Sheet", pictures=[one] * 50)]
    write_page(tmp_path / "page.html", "title", sections)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5
    assert "A note.</p>" in page
    assert "49 of 50 examples are left out: the page is full.</p>" in page
