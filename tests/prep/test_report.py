import cv2
import numpy as np
import pytest

from data_prep.archives import RecSource
from data_prep.decode import Photo
from data_prep.detect_cli import GREEN, RED
from data_prep.plan import Layout, Plan
from data_prep.report import PHOTO_PX, figures, marked, write_report
from data_prep.transforms import Keep
from tests.data.sets import encode, picture
from tests.prep.jobs import messy, options, run
from tests.prep.recs import write_rec


@pytest.mark.parametrize("shrink", [1, 4])
def test_a_photo_on_the_sheet_has_box_and_landmarks_of_its_record_in_their_places(shrink):
    photo = Photo(np.full((400, 600, 3), 128, dtype=np.uint8), shrink)
    landmarks = np.array([[200, 160], [300, 160], [250, 220], [210, 280], [290, 280]])
    record = {"box": [150 * shrink, 100 * shrink, 350 * shrink, 340 * shrink], "score": 0.9}
    seen = marked(photo, record | {"landmarks": (landmarks * shrink).tolist()})
    assert seen.shape == (100, PHOTO_PX, 3)
    for x, y in landmarks // 4:
        assert tuple(seen[y, x]) == RED
    for y, x in ((60, 38), (25, 60)):  # the lines are smoothed
        assert np.abs(seen[y, x].astype(int) - GREEN).max() < 60
    assert tuple(seen[60, 55]) == (128, 128, 128)


def test_figures_are_of_all_faces_and_all_rejects(tmp_path):
    root = messy(tmp_path / "photos")
    run(tmp_path / "out", options(root))
    sides, scores, reasons = figures(Plan(Layout(tmp_path / "out")))
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
    assert (whole[:upper] != 255).sum() > 2 * (crops[:upper] != 255).sum()
