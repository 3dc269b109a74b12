"""Retrieval on sets of shards: the command, the recipe's rules, a report's pictures, and sets that cannot be judged."""

import json
import re
import sys

import numpy as np
import pytest

from data_prep.shards import ShardWriter, write_set
from dist_train.errors import UserError
from dist_train.evaluate.config import EvaluateConfig, RetrievalConfig
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.retrieval_set import evaluate_retrieval
from dist_train.runtime.ranks import ALONE
from launch.cli import run
from tests.evaluate.faces import color_picture
from tests.evaluate.models import write_color_model

HOW = Judging(lambda images: images.flatten(1), 16, 8, ALONE, flip=False)


def write_cameras(directory, records):
    """A set of one-coloured pictures: label, colour, `.json`."""
    with ShardWriter(directory / "all-000000.tar") as writer:
        for number, (label, color, record) in enumerate(records):
            writer.write(f"{number:04d}", color_picture(np.array(color)), label, record, "png")
    names = [str(label) for label in range(1 + max(label for label, _, _ in records))]
    write_set(directory, 16, names, [1] * len(names), [writer.shard])
    return directory


def crossing():
    """Two people whose nearest picture is of their own camera, and whose other picture is far from it."""
    return [
        (0, (250, 20, 20), {"role": "probe", "camera": 1}),
        (0, (250, 30, 20), {"role": "gallery", "camera": 1}),
        (0, (20, 40, 250), {"role": "gallery", "camera": 2}),
        (1, (20, 20, 250), {"role": "probe", "camera": 1}),
        (1, (20, 30, 250), {"role": "gallery", "camera": 1}),
        (1, (250, 40, 20), {"role": "gallery", "camera": 2}),
        (2, (20, 250, 20), {"role": "probe", "camera": 1}),
    ]


@pytest.mark.job
def test_eval_prints_writes_and_shows_what_searches_find(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    write_cameras(tmp_path / "people", crossing())
    write_color_model(tmp_path / "model.onnx", dim=3)
    words = ["--retrieval", "people", "--rerank", "--no-flip", "--input-range", "-1..1"]
    figures = {}
    for name, more in (("plain", []), ("cross", ["--ignore-same", "camera", "--report", "page.html"])):
        words_here = ["headcount", "eval", "model.onnx", *words, *more, "--json", f"{name}.json"]
        monkeypatch.setattr(sys, "argv", words_here)
        assert run() == 0
        (model,) = json.loads((tmp_path / f"{name}.json").read_text())
        (figures[name],) = model["retrieval"]
    out = capsys.readouterr().out
    assert figures["plain"]["recall"] == {"1": 1.0}
    assert figures["cross"]["recall"]["1"] < 1, "the mate of the other camera looks like the other person"
    assert (figures["cross"]["probes"], figures["cross"]["without_mate"], figures["cross"]["gallery"]) == (2, 1, 4)
    assert set(figures["plain"]["reranked"]) == {"recall", "map", "map_at_r", "r_precision", "minp"}
    assert re.search(r"^people, re-ranked · model  ", out, flags=re.MULTILINE)
    assert "people: gallery entries of a probe's own label and camera are left out; 1 probes have no mate" in out
    page = (tmp_path / "page.html").read_text()
    assert page.count("average precision ") == 1, "the worst of two is also their median"
    assert "✓" in page
    assert "✗" in page


def test_a_mate_of_the_same_camera_is_left_out_of_figures_and_examples(tmp_path):
    write_cameras(tmp_path / "people", crossing())
    result = evaluate_retrieval(RetrievalConfig(set=tmp_path / "people", ignore_same="camera"), HOW)
    for example in result.examples:
        assert len(example.found) == 3
        assert sum(found.right for found in example.found) == 1
        assert [found.score for found in example.found] == sorted((f.score for f in example.found), reverse=True)


@pytest.mark.parametrize(
    ("records", "field", "message"),
    [
        ([*crossing(), (1, (1, 2, 3), {"camera": 1})], None, r"picture 0007 has role None in its .json"),
        ([*crossing(), (1, (1, 2, 3), {"role": "probe"})], "camera", r"picture 0007 has None as its 'camera'"),
        (crossing(), "lens", "'lens' is neither a field of a sample's .json nor a column"),
        ([(n, (n, 2 * n, 9), {"role": "probe"}) for n in range(3)], None, "3 probes and 0 gallery entries"),
        ([(n, (n, 2 * n, 9), {}) for n in range(3)], None, "no probe has a mate"),
    ],
)
def test_a_set_that_cannot_be_judged_is_refused_with_the_picture_that_shows_it(tmp_path, records, field, message):
    write_cameras(tmp_path / "people", records)
    with pytest.raises(UserError, match=message):
        evaluate_retrieval(RetrievalConfig(set=tmp_path / "people", ignore_same=field), HOW)


def test_two_sets_of_one_name_are_refused_in_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="both called 'held'"):
        EvaluateConfig.model_validate({"retrieval": [{"set": "a/held"}, "b/held"]})
