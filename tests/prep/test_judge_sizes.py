"""Recall is told size by size, at the same scores as that of all faces."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.judge.curves import FALSE_ALARMS, HEIGHTS_PX
from data_prep.judge.figures import figures_of, summary
from data_prep.judge.matching import match_all
from data_prep.judge.report import tables_of
from tests.prep import test_judge
from tests.prep.test_judge import problem


@pytest.fixture(autouse=True)
def _same_problem_in_any_order_of_tests(monkeypatch):
    monkeypatch.setattr(test_judge, "CHANCE", np.random.default_rng(7))


def figures_here(found):
    return figures_of(SimpleNamespace(name="table", ellipses=None), SimpleNamespace(found=found), {})


def test_recall_of_each_height_is_that_of_its_faces_at_so_many_false_alarms():
    found = problem(12)
    matches = match_all(found)
    figures = figures_here(found)
    known = [(photo, face) for photo, each in enumerate(found) for face in np.flatnonzero(~each.photo.ignored)]
    height = {(photo, face): np.diff(found[photo].photo.boxes[face, 1::2])[0] for photo, face in known}
    told = summary(figures)["recall_by_height_px"]
    assert [each["from"] for each in told] == [0, 20, 30, 50]
    shown = {allowed: 0 for allowed in FALSE_ALARMS}
    for row in told:
        mine = [face for face in known if row["from"] <= height[face] < row["below"]]
        assert row["faces"] == len(mine)
        assert row["recall"] == row["recall_at_false_alarms_per_photo"]["1"]
        for allowed, recall in zip(FALSE_ALARMS, row["recall_at_false_alarms_per_photo"].values(), strict=True):
            least = figures.curve.threshold(allowed)
            sure = matches.scores >= (np.inf if least is None else least)
            hits = set(zip(matches.photo[sure], matches.face[sure], strict=True))
            assert recall == len(hits.intersection(mine)) / len(mine)
            shown[allowed] += len(hits.intersection(mine))
    assert list(shown.values()) == [round(figures.curve.recall(each) * len(known)) for each in FALSE_ALARMS]
    assert len(set(shown.values())) > 2


def test_the_table_of_recall_has_a_row_for_each_size():
    table = tables_of(figures_here(problem(12)))[0]
    assert table.heads == ["height in pixels", "faces", "0.01", "0.03", "0.1", "0.3", "1", "3"]
    names = [row[0].text for row in table.rows]
    assert names == ["all", *(f"{low} to {high}" for low, high in pairwise(HEIGHTS_PX[:5]))]
    assert table.rows[0][1].text == f"{sum(int(row[1].text) for row in table.rows[1:])}"
