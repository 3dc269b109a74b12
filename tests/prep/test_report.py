import json
import warnings

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from data_prep.align_transform import Align
from data_prep.decode import Photo
from data_prep.faces.marked import GREEN, RED
from data_prep.job.plan import JobFiles, JobPlan
from data_prep.job.report import figures, histogram, pace, write_report
from data_prep.job.report_samples import PHOTO_PX, close_calls, marked, shown_pairs
from data_prep.sources.archives import RecSource
from data_prep.transforms import Keep
from dist_train.data.manifest import load_manifest
from tests.data.sets import encode, picture
from tests.prep.jobs import messy, options, run
from tests.prep.recs import write_rec
from tests.prep.standin import Leading


@pytest.mark.parametrize("shrink", [1, 4])
def test_a_photo_on_the_sheet_has_box_and_landmarks_of_its_record_in_their_places(shrink):
    photo = Photo(np.full((400, 600, 3), 128, dtype=np.uint8), shrink)
    landmarks = np.array([[200, 160], [300, 160], [250, 220], [210, 280], [290, 280]])
    record = {"box": [150 * shrink, 100 * shrink, 350 * shrink, 340 * shrink], "score": 0.9}
    seen = marked(photo, record | {"landmarks": (landmarks * shrink).tolist()})
    assert seen.shape == (133, PHOTO_PX, 3)
    for x, y in landmarks // 3:
        assert tuple(seen[y, x]) == RED
    for y, x in ((60, 50), (33, 80)):  # the lines are smoothed
        assert np.abs(seen[y, x].astype(int) - GREEN).max() < 60
    assert tuple(seen[60, 60]) == (128, 128, 128)


def test_figures_are_of_all_faces_and_all_rejects(tmp_path):
    root = messy(tmp_path / "photos")
    run(tmp_path / "out", options(root))
    sides, scores, reasons = figures(JobPlan(JobFiles(tmp_path / "out")))
    assert len(scores) == 56, "faces of 55 photos, one with two; duplicates and small identities are in"
    assert set(scores) == {0.5}
    assert sorted(sides) == [len(b"photo 0 0")] * 55 + [len(b"photo alone")]
    assert reasons == {"no face": 2, "duplicate": 2, "vanished": 1, "few pictures": 1}


def test_a_source_that_was_taken_away_leaves_a_report_of_crops(tmp_path):
    write_rec(tmp_path, [(float(number // 2), encode(picture(number, 112))) for number in range(4)])
    keep = options(tmp_path, Keep()).model_copy(update={"source": RecSource(path=tmp_path / "train.rec")})
    run(tmp_path / "out", keep)
    write_report(tmp_path / "out")
    whole = cv2.imread(str(tmp_path / "out" / "report.png"))
    (tmp_path / "train.rec").unlink()
    write_report(tmp_path / "out")
    crops = cv2.imread(str(tmp_path / "out" / "report.png"))
    assert crops.shape == whole.shape
    upper = crops.shape[0] // 3
    assert (whole[:upper] != 255).sum() > 1.5 * (crops[:upper] != 255).sum(), "titles are on both"


def crowds(root, leads):
    """A set of one photo per lead, with a runner-up where the lead is a number; made without the detector."""
    for number, lead in enumerate(leads):
        (root / "photos" / f"person {number % 7}").mkdir(parents=True, exist_ok=True)
        body = json.dumps({"lead": lead, "number": number}).encode()
        data = encode(picture(number, 32), ".png") + body
        (root / "photos" / f"person {number % 7}" / f"{number:03d}.png").write_bytes(data)
    run(root / "out", options(root / "photos", Leading(image_size=32), min_images=1, unit_rows=8))
    return JobPlan(JobFiles(root / "out"))


LEADS = [None, 3.5, 0.8, None, 0.02, 1.2, None, 0.3, 2.0, None, 0.05, None, 0.45, 9.0, 0.4, None, 0.7, 5.0, 1.1, None]


def test_photos_where_another_face_was_nearly_chosen_come_first_and_closest_first(tmp_path):
    plan = crowds(tmp_path, LEADS)
    pairs = shown_pairs(plan, load_manifest(plan.layout.out), 15)
    assert len(pairs) == 15
    told = [pair.title.partition("\n")[2] for pair in pairs]
    assert told[:5] == [f"lead {lead:.2f}, 2 faces" for lead in (0.02, 0.05, 0.3, 0.4, 0.45)]
    assert [pair.close_call for pair in pairs] == [True] * 5 + [False] * 10
    assert len({pair.title for pair in pairs}) == 15, "no sample twice"
    assert "1 face" in told


def test_photos_without_a_close_call_are_spread_over_the_set(tmp_path):
    plan = crowds(tmp_path, [None, 0.6, 3.0] * 7)
    manifest = load_manifest(plan.layout.out)
    assert close_calls(plan, manifest) == []
    assert [pair.close_call for pair in shown_pairs(plan, manifest, 15)] == [False] * 15


def test_close_calls_that_are_not_in_the_set_are_not_shown(tmp_path):
    for copy in ("a", "b"):  # the second is a duplicate and left out
        (tmp_path / "photos" / copy).mkdir(parents=True)
        body = json.dumps({"lead": 0.01, "number": 0}).encode()
        (tmp_path / "photos" / copy / "1.png").write_bytes(encode(picture(1, 32), ".png") + body)
        body = json.dumps({"lead": 0.49, "number": 1}).encode()
        (tmp_path / "photos" / copy / "2.png").write_bytes(encode(picture(ord(copy), 32), ".png") + body)
    run(tmp_path / "out", options(tmp_path / "photos", Leading(image_size=32), min_images=1))
    plan, manifest = JobPlan(JobFiles(tmp_path / "out")), load_manifest(tmp_path / "out")
    assert len(close_calls(plan, manifest)) == manifest.samples == 3
    titles = [pair.title for pair in shown_pairs(plan, manifest, 15)]
    assert sorted(title.split()[2] for title in titles) == ["0.01,", "0.49,", "0.49,"]


def test_units_that_were_made_before_leads_were_noted_are_shown_without(tmp_path):
    plan = crowds(tmp_path, LEADS)
    for unit in range(plan.units):
        path = plan.layout.statistics(unit)
        pq.write_table(pq.read_table(path).drop_columns(["lead"]), path)
        mark = json.loads(plan.layout.done(unit).read_text())
        del mark["ended"]
        plan.layout.done(unit).write_text(json.dumps(mark))
    assert close_calls(plan, load_manifest(plan.layout.out)) == []
    assert pace(plan) == (0, 0)
    write_report(plan.layout.out)


def test_the_pace_is_the_whole_jobs_without_its_pauses(tmp_path):
    plan = crowds(tmp_path, LEADS)
    # Two workers, 8 photos each in 4 s, half of that at the same time; an hour later 4 photos in 2 s.
    for unit, (ended, seconds) in enumerate([(1004, 4), (1006, 4), (4600, 2)]):
        mark = json.loads(plan.layout.done(unit).read_text()) | {"ended": ended, "seconds": seconds}
        plan.layout.done(unit).write_text(json.dumps(mark))
    assert pace(plan) == (pytest.approx(20 / 8), 2)


@pytest.mark.parametrize("count", [1, 4])
def test_a_report_of_few_pictures_is_as_wide_and_not_as_high(tmp_path, count):
    crowds(tmp_path, LEADS[:count])
    few = cv2.imread(str(write_report(tmp_path / "out")))
    crowds(tmp_path / "more", LEADS)
    many = cv2.imread(str(write_report(tmp_path / "more" / "out")))
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] - few.shape[0] == pytest.approx(2 * 243, abs=3), "two rows of samples fewer"
    assert empty_bands(few) < 0.1
    assert empty_bands(many) < 0.1


def empty_bands(sheet):
    """The highest band without a mark on it, as a share of the sheet."""
    blank = (sheet > 250).all(axis=(1, 2))
    ends = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(int)))
    return (ends[1::2] - ends[::2]).max() / len(sheet)


def test_a_report_without_any_face_says_so(tmp_path):
    photos = tmp_path / "photos" / "a"
    photos.mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(photos / f"{number}.png"), np.full((80, 90, 3), 90 + 20 * number, np.uint8))
    run(tmp_path / "out", options(tmp_path / "photos", Align(no_face="centre", image_size=32), min_images=1))
    sides, scores, reasons = figures(JobPlan(JobFiles(tmp_path / "out")))
    assert (len(sides), len(scores), len(reasons)) == (0, 0, 0)
    assert cv2.imread(str(write_report(tmp_path / "out"))).std() > 10


def test_names_are_shown_as_they_are_and_never_read_as_formulas(tmp_path):
    photos = tmp_path / "photos" / "$a"
    photos.mkdir(parents=True)
    for name in ("cost $5 or $6_{.png", "\x1b[31mred\n.png", "ぞ.png"):
        (photos / name).write_bytes(encode(picture(len(name), 32), ".png") + b'{"lead": 0.5, "number": 0}')
    run(tmp_path / "$out_{", options(tmp_path / "photos", Leading(image_size=32), min_images=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path / "$out_{")
    titles = {
        pair.title.partition("\n")[0]
        for pair in shown_pairs(JobPlan(JobFiles(tmp_path / "$out_{")), load_manifest(tmp_path / "$out_{"), 15)
    }
    assert titles == {"cost $5 or $6_{.png", "?[31mred?.png", "ぞ.png"}


@pytest.mark.parametrize(
    ("values", "step", "scale"),
    [
        (np.concatenate([np.full(12_990, 120.0), np.arange(60.0, 70.0)]), None, "linear"),
        (np.concatenate([np.full(4_000, 1.0), np.geomspace(2, 500, 60).round(), [530.0]]), 1, "log"),
        (np.repeat([1.0, 2.0, 3.0], [13_000, 20, 1]), 1, "linear"),
        (np.array([0.97]), None, "linear"),
        (np.array([5.0]), 1, "linear"),
    ],
)
def test_a_histogram_shows_single_values_beside_thousands(values, step, scale):
    axes = Figure().subplots()
    histogram(axes, values, "title", "unit", "none", step)
    axes.figure.canvas.draw()
    assert (axes.get_yscale(), axes.get_xscale()) == ("log", scale)
    bars = [bar for bar in axes.patches if bar.get_height() > 0]
    assert sum(bar.get_height() for bar in bars) == len(values)
    low, high = axes.transAxes.transform([(0, 0), (1, 1)])
    for bar in bars:
        (left, _), (right, top) = axes.transData.transform(
            [(bar.get_x(), 1), (bar.get_x() + bar.get_width(), bar.get_height())]
        )
        assert right - left > 0.005 * (high[0] - low[0]), "wide enough to be seen"
        assert top - low[1] > 0.02 * (high[1] - low[1]), "and high enough"
