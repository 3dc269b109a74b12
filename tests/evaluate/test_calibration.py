"""Thresholds of a model: read from figures, stated by files, and refused where they are another's."""

import json

import pytest

from dist_train.errors import UserError
from dist_train.evaluate.calibration import Owner, read_calibration, stated_calibration
from tests.evaluate.figures import figures, point, write_figures

OURS, THEIRS, WEIGHTS = ("a" * 64, "b" * 64, "c" * 64)
RUN = Owner("faces", OURS)
FILE = Owner("face.onnx", THEIRS, WEIGHTS, exported=True)
POINTS = [point(1e-2, 0.25), point(1e-4, 0.5, resolved=False), point(1e-6, None, fnmr=None, fnmr_95=[None, None])]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "figures.json"


def test_the_threshold_of_a_rate_is_the_one_that_the_models_own_figures_have(path):
    write_figures(path, figures(THEIRS, [point(1e-4, 0.9)]), figures(OURS, POINTS))
    found = read_calibration(path, RUN)
    assert (found.set, found.genuine_pairs, found.impostor_pairs) == ("visitors", 60, 1710)
    threshold, measured = found.at(0.0001)
    assert (threshold, measured.resolved) == (0.5, False)
    assert measured.fnmr_text() == "3.20% (95 %: 2.80% to 3.90%)"


def test_figures_of_the_run_hold_for_the_file_that_was_exported_from_it(path):
    write_figures(path, figures(WEIGHTS, POINTS))
    assert read_calibration(path, FILE).model_sha256 == WEIGHTS
    with pytest.raises(UserError, match=r"figures of tiny \(cccccccccccc\), and none of faces .* evaluate this one"):
        read_calibration(path, RUN)
    with pytest.raises(UserError, match=r"face\.onnx does not say which weights it was exported from"):
        read_calibration(path, FILE._replace(weights=""))


def test_a_file_that_was_evaluated_beside_its_run_has_its_own_thresholds(path):
    write_figures(path, figures(WEIGHTS, [point(1e-2, 0.2)]), figures(THEIRS, POINTS), figures(THEIRS, POINTS))
    found = read_calibration(path, FILE)
    assert (found.model_sha256, found.at(1e-2)[0]) == (THEIRS, 0.25)
    assert read_calibration(path, Owner("faces", WEIGHTS)).at(1e-2)[0] == 0.2


def test_what_a_file_states_is_read_back_and_belongs_to_it(path):
    found = read_calibration(write_figures(path, figures(OURS, POINTS)), RUN)
    assert stated_calibration(found.to_text(), RUN) == found
    assert stated_calibration("", RUN) is None
    with pytest.raises(UserError, match="are of a model with SHA-256 aaaaaaaaaaaa; the file was changed"):
        stated_calibration(found.to_text(), FILE)
    with pytest.raises(UserError, match=r"its thresholds: .*; export it again"):
        stated_calibration(found.to_text().replace("0.25", '"high"'), RUN)
    with pytest.raises(UserError, match="expected at most"):
        stated_calibration(found.to_text() + " " * (1 << 18), RUN)


@pytest.mark.parametrize("fmr", [1e-3, 0.0, float("nan"), 1e-6])
def test_rates_without_a_threshold_are_refused_with_those_that_have_one(path, fmr):
    found = read_calibration(write_figures(path, figures(OURS, POINTS)), RUN)
    with pytest.raises(UserError, match=r"no threshold was measured .* there is one for 0\.01, 0\.0001"):
        found.at(fmr)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([figures(None, POINTS)], r"figures of tiny \(no digest\), and none of faces"),
        ([], "figures of no model"),
        ([figures(OURS, POINTS, sets=())], "no operating points in it; measure them on all pairs"),
        ([figures(OURS, POINTS, sets=("a", "b"))], "thresholds of 2 sets, a, b, and one must decide"),
        ([figures(OURS, [point(1e-4, 7)])], r"threshold is 7"),
        ([figures(OURS, [point(0, 0.5)])], r"fmr is 0"),
        ([figures(OURS, [point(1e-4, float("nan"))])], r"threshold is nan"),
        ([figures(OURS, [])], "operating_points"),
        ({"forms": []}, "expected figures by `headcount eval --json`"),
        ([{"all_pairs": []}], "model is missing"),
    ],
)
def test_figures_that_give_no_threshold_are_refused_with_the_reason(path, body, message):
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=message):
        read_calibration(path, RUN)


def test_files_that_are_none_of_figures_are_named(path, tmp_path):
    for data in (b"\x89PNG", b"", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"figures\.json: not JSON"):
            read_calibration(path, RUN)
    with pytest.raises(UserError, match="No such file"):
        read_calibration(tmp_path / "none.json", RUN)
    with pytest.raises(UserError, match="a directory"):
        read_calibration(tmp_path, RUN)
