"""The measured figures of the pages are those of the stored results."""

import json

import pytest

from benchmarks import measured
from benchmarks.measured import Claim, fill, parts, read_claims, read_lines, section_table, unclaimed


@pytest.fixture
def claim():
    figures = [
        {"say": "{} times as fast", "key": "ratio", "digits": 1},
        {"say": "{} kB", "key": "run.bytes", "times": 0.001, "digits": 1},
    ]
    found = {"section": "head", "what": "A head", "command": "head.py", "lines": [{"case": "a"}], "figures": figures}
    return Claim.model_validate(found | {"first": {"what": "First", "figure": 0}})


def line(ratio, *, case="a", processor="Zen, stepping 1, 2 cores", by_hand=False, **more):
    return {"benchmark": "head", "case": case, "ratio": ratio, "processor": processor, "by_hand": by_hand} | more


@pytest.mark.parametrize("name", measured.PAGES)
def test_a_page_is_as_the_command_writes_it(name):
    page = measured.PAGES[name].read_text(encoding="utf-8")
    assert page == fill(page, parts(), name), "run `make measured`"


def test_every_stored_line_belongs_to_a_claim():
    assert list(unclaimed(read_claims(), read_lines())) == []


def test_a_line_without_a_claim_stops_the_command(monkeypatch, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"benchmark": "head", "case": "new", "ratio": 2}) + "\n")
    monkeypatch.setattr(measured, "BY_MACHINE", lines)
    monkeypatch.setattr(measured, "PAGES", {})
    with pytest.raises(SystemExit, match="head new: no claim"):
        measured.main()


def test_a_figure_is_the_range_over_the_runs_of_a_processor(claim):
    lines = [line(2.04), line(3.0), line(9, case="b"), line(6.71, processor=None, by_hand=True, run={"bytes": 4200})]
    lines.append(line(6.71, processor=None))
    assert section_table([claim], lines).splitlines()[2:] == [
        "| A head: `head.py` | 2.0 to 3.0 times as fast | 2 | Zen |",
        "|  | 6.7 times as fast; 4.2 kB | 2, 1 of them ‡ | not recorded |",
    ]


def test_the_readmes_figure_is_the_range_over_all_processors(claim):
    lines = [line(2), line(3), line(6.7, processor=None), line(None)]
    assert measured.first_table([claim], lines).splitlines()[2:] == [
        "| First | 2.0 to 6.7 times as fast | 3 runs, 2 processors |"
    ]


def test_a_place_without_figures_and_one_without_an_end_are_refused():
    with pytest.raises(ValueError, match="nothing is measured for the place 'b'"):
        fill("<!-- begin b -->\n<!-- end b -->", {"a": "x"}, "page")
    with pytest.raises(ValueError, match="1 places begin and 0 end"):
        fill("<!-- begin a -->\n", {"a": "x"}, "page")


def test_the_readme_is_one_that_is_read_and_its_comparison_is_stored():
    text = (measured.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    stored = next(each for each in read_lines() if each["case"] == "arcface_torch_1m")
    assert f"| {stored['baseline']:,} ms, `.cuda()` removed | {stored['ours']} ms |" in text
    clone = next(each for each in read_lines() if each["case"] == "clone")
    assert f"comes to {clone['accuracy']} % verification accuracy" in " ".join(text.split())
