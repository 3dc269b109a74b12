import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.decode import decode
from data_prep.detect_cli import draw
from data_prep.mtcnn.cascade import Detector
from dist_train.errors import UserError, WorkError
from tests.prep.test_mtcnn import PORTRAIT, portrait


def run(*arguments):
    return CliRunner().invoke(app, ["detect", *map(str, arguments)], catch_exceptions=True)


def test_a_photo_is_drawn_with_its_faces(tmp_path):
    result = run(PORTRAIT, "--out", tmp_path / "new" / "seen")
    assert result.exit_code == 0, result.output
    target = tmp_path / "new" / "seen" / "grace_hopper.jpg"
    assert result.stdout == f"{PORTRAIT}: 1 face: {target}\n"
    changed = np.abs(decode(target.read_bytes()).pixels.astype(int) - portrait()).max(2) > 60
    assert 200 < changed.sum() < 0.05 * changed.size


def test_boxes_and_landmarks_are_where_faces_are():
    (faces,) = Detector().detect([portrait()])
    marked = draw(portrait(), faces)
    for x, y in faces.landmarks[0]:
        assert marked[round(float(y)), round(float(x))].tolist() == [255, 0, 0]
    left, top, right, bottom = (round(float(side)) for side in faces.boxes[0])
    for x, y in ((left, (top + bottom) // 2), (right, (top + bottom) // 2), ((left + right) // 2, bottom)):
        assert marked[y, x].tolist() == [0, 200, 0]


def test_photos_of_equal_names_do_not_overwrite_each_other(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), np.zeros((30, 40, 3), np.uint8))
    result = run(tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", "--out", tmp_path)
    assert result.stdout.splitlines()[1] == f"{tmp_path / 'b' / 'x.png'}: 0 faces: {tmp_path / 'x-1.jpg'}"
    assert (tmp_path / "x.jpg").exists()
    assert (tmp_path / "x-1.jpg").exists()


def test_a_bad_photo_is_named_and_the_others_are_drawn(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"hello")
    result = run(bad, PORTRAIT, "--out", tmp_path)
    assert isinstance(result.exception, WorkError)
    assert "1 of 2 photos" in str(result.exception)
    assert f"{bad}: not a picture: 5 bytes" in result.output
    assert (tmp_path / "grace_hopper.jpg").exists()
    assert not (tmp_path / "bad-1.jpg").exists()


@pytest.mark.parametrize(
    "arguments", [["nowhere.jpg", "--out", "x"], [PORTRAIT], [PORTRAIT, "--out", "x", "--min-face", "5"]]
)
def test_mistakes_end_with_status_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2


def test_a_missing_device_is_a_mistake(tmp_path):
    assert isinstance(run(PORTRAIT, "--out", tmp_path, "--device", "tpu").exception, UserError)
