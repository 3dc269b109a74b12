import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from dist_train.errors import WorkError
from dist_train.evaluate import report as report_module
from dist_train.evaluate.embeddings import Embeddings
from dist_train.evaluate.identification import judge_search, search_gallery
from dist_train.evaluate.report import RunReport, Sample, write_comparison, write_report
from dist_train.evaluate.tables import ModelScores
from dist_train.evaluate.verification import judge_pairs
from tests.evaluate.test_identification import problem
from tests.evaluate.test_verification import tiny_set


@pytest.fixture(scope="module")
def verified():
    return judge_pairs(
        tiny_set(), Embeddings(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)), torch.full((60,), 7.5))
    )


@pytest.fixture(scope="module")
def identified():
    return judge_search("heldout", search_gallery(*problem()), problem()[3], closed=True)


def run(verified, identified):
    history = [{"step": s, "loss": 40.0 / s, "lr": 0.1, "images_per_s": 300.0 + s} for s in range(1, 2000)]
    samples = [Sample(np.full((16, 16, 3), i * 20, np.uint8), f"class {i} <&>") for i in range(5)]
    summary = {"identities": 2311, "images": 45321, "rank1": 0.5, "tar_at_far": {"0.001": 0.9}, "nothing": None}
    return RunReport("quick <start>", summary, history, [verified], [identified], samples, "seed 0")


def test_the_report_is_one_file_that_loads_nothing(tmp_path, verified, identified):
    path = tmp_path / "deep" / "report.html"
    write_report(path, run(verified, identified))
    page = path.read_text()
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    assert "<script" not in page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_is_written_again_shows_new_figures_and_draws_nothing_again(tmp_path, monkeypatch, verified):
    report = RunReport("quick start", {"images": 7}, [{"step": s, "loss": 1.0 / s} for s in (1, 2)], [verified])
    write_report(tmp_path / "report.html", report)
    first = (tmp_path / "report.html").read_text()
    monkeypatch.setattr(report_module, "plots", None)
    monkeypatch.setattr(report_module, "result_sections", None)
    report.summary["onnx_max_abs_diff"] = 0.125
    write_report(tmp_path / "report.html", report)
    second = (tmp_path / "report.html").read_text()
    assert "0.125" not in first
    assert second.count("0.125") == 2, "as a tile and in the table"
    assert second.count("data:image/") == first.count("data:image/") > 1


def test_the_report_is_well_formed_and_holds_every_part(tmp_path, verified, identified):
    write_report(tmp_path / "report.html", run(verified, identified))
    page = (tmp_path / "report.html").read_text()
    opened = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "img", "br"):
                opened.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("meta", "link", "img", "br"):
                assert opened.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    Checker().feed(page)
    assert opened == []
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Training", "Verification", "Identification", "Hardest wrong pairs: tiny", "What the network saw", "All figures"
    ]  # fmt: skip
    for words in ("Loss", "Learning rate", "Speed", "ROC", "DET", "CMC", "Scores: tiny", "45,321", "not measured"):
        assert words in page
    assert "quick &lt;start&gt;" in page
    assert "class 1 &lt;&amp;&gt;" in page
    assert page.count('class="card pair"') == len(verified.hard_pairs)
    assert "fewer than one expected false accept" in page


def test_two_writes_of_a_report_give_the_same_bytes(tmp_path, verified, identified):
    for name in ("a", "b"):
        write_report(tmp_path / name, run(verified, identified))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parts_that_are_missing_are_left_out(tmp_path):
    write_report(tmp_path / "report.html", RunReport("bare", {"steps": 3}))
    assert re.findall(r"<h2>(.*?)</h2>", (tmp_path / "report.html").read_text()) == ["All figures"]


def test_a_comparison_marks_the_best_of_each_set(tmp_path, verified, identified):
    worse = replace(verified, accuracy=verified.accuracy - 0.1)
    models = [ModelScores("alpha", [verified], [identified]), ModelScores("beta", [worse], [identified])]
    write_comparison(tmp_path / "compare.html", "Models", models)
    page = (tmp_path / "compare.html").read_text()
    best = re.findall(r'<td class="best">(.*?)</td>', page)
    assert best[0].startswith(f"{100 * verified.accuracy:.2f}")
    assert f'<td class="best">{100 * worse.accuracy:.2f}' not in page
    assert "tiny · alpha" in page
    assert page.count(">beta<") + page.count(">beta</text>") >= 1


def test_a_report_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", RunReport("x", {}))


def test_figures_that_no_recipe_knows_get_no_plots(tmp_path):
    history = [
        {"step": step, "loss": 1.0, **{f"{n}/loss": 1.0 for n in range(1000)}, "triplet/loss": 1.0} for step in (1, 2)
    ]
    write_report(tmp_path / "report.html", RunReport("foreign", {}, history))
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
