import json

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.decode import decode
from data_prep.detect_cli import draw
from data_prep.faces.annotated import open_faces
from data_prep.landmarks.table import read_rows
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.weights import open_networks, write_networks
from dist_train.data.aligner import Aligner
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.runtime.digest import sha256_of
from tests.prep.test_mtcnn import PORTRAIT, crowd, portrait


def run(*arguments, command="detect"):
    return CliRunner().invoke(app, [command, *map(str, arguments)], catch_exceptions=True)


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


@pytest.mark.parametrize("arguments", [["nowhere.jpg", "--out", "x"], [PORTRAIT, "--out", "x", "--min-face", "5"]])
def test_mistakes_end_with_status_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2


def test_a_command_that_asks_for_nothing_is_a_mistake():
    assert "--table FILE" in str(run(PORTRAIT).exception)


def test_a_missing_device_is_a_mistake(tmp_path):
    assert isinstance(run(PORTRAIT, "--out", tmp_path, "--device", "tpu").exception, UserError)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with a photo of several faces and one without any, and something else."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    cv2.imwrite(str(folder / "deep" / "crowd.png"), crowd()[:280, :480, ::-1])
    cv2.imwrite(str(folder / "none.png"), np.zeros((40, 50, 3), np.uint8))
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.mark.parametrize("name", ["faces.csv", "faces.tsv", "faces.parquet"])
def test_a_table_holds_the_faces_as_a_set_of_known_ones(photos, name):
    (expected,) = Detector().detect([decode((photos / "deep" / "crowd.png").read_bytes()).pixels])
    assert len(expected.scores) > 3
    result = run(photos, "--table", photos / name)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{photos / name}: faces of 2 photos\n"
    if name.endswith("parquet"):
        assert pq.ParquetFile(photos / name).num_row_groups == 1
    listed = open_faces(photos / name)
    (photos / name).unlink()
    some, none = listed.photos
    assert (some.name, none.name) == ("deep/crowd.png", "none.png")
    assert np.allclose(some.boxes, expected.boxes, atol=0.006)
    assert np.allclose(some.landmarks, expected.landmarks, atol=0.006)
    assert none.boxes.shape == (0, 4)


def test_one_face_a_photo_makes_a_table_of_landmarks(photos, tmp_path):
    table = photos / "main.csv"
    result = run(photos, PORTRAIT, "--table", table, "--faces", "main")
    assert isinstance(result.exception, UserError)
    assert "grace_hopper.jpg is not below" in str(result.exception)
    assert not table.exists()
    twice = photos / "deep" / ".." / "none.png"
    assert run(photos, twice, "--table", table, "--faces", "main", "--out", tmp_path).exit_code == 0
    ((paths, values),) = read_rows(table)
    table.unlink()
    assert paths == ["deep/crowd.png", "none.png"]
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1]).all()
    assert (tmp_path / "crowd.jpg").exists()


def test_a_table_of_unreadable_photos_names_them_and_holds_the_others(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    cv2.imwrite(str(tmp_path / "none.png"), np.zeros((40, 50, 3), np.uint8))
    result = run(tmp_path, "--table", tmp_path / "faces.csv")
    assert isinstance(result.exception, WorkError)
    assert f"{tmp_path / 'bad.jpg'}: not a picture" in result.output
    assert [photo.name for photo in open_faces(tmp_path).photos] == ["none.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("faces.txt", "expected a name that ends in .csv"), ("none/faces.csv", "none is no folder")],
)
def test_a_table_that_cannot_be_written_is_refused_before_any_work(photos, name, message):
    result = run(photos, "--table", photos / name)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_folder_without_photos_is_refused(tmp_path):
    result = run(tmp_path, "--table", tmp_path / "faces.csv")
    assert isinstance(result.exception, UserError)
    assert "no photo in it" in str(result.exception)


@pytest.fixture
def own(tmp_path):
    """A cascade of one's own, which gives every face the score 0.5."""
    networks = open_networks()._replace(thresholds=(0.6, 0.7, 0.4))
    for values in networks.onet.score.parameters():
        torch.nn.init.zeros_(values)
    write_networks(tmp_path / "own.safetensors", networks, {})
    return tmp_path / "own.safetensors"


@pytest.mark.parametrize("command", ["align", "detect", "eval-detector"])
def test_a_trained_cascade_is_the_detector_where_it_is_given(tmp_path, own, command):
    folder = tmp_path / "photos"
    (folder / "grace").mkdir(parents=True)
    cv2.imwrite(str(folder / "grace" / "1.png"), portrait(0.5)[..., ::-1])
    table, figures, out = folder / "faces.csv", tmp_path / "figures.json", tmp_path / "set"
    arguments = {
        "align": [folder, out, "--workers", 1],
        "detect": [folder, "--table", table],
        "eval-detector": [table, "--json", figures],
    }
    if command == "eval-detector":
        assert run(folder, "--table", table, "--faces", "main").exit_code == 0
    result = run(*arguments[command], "--detector", own, command=command)
    assert result.exit_code == 0, result.output
    if command == "align":
        assert load_manifest(out).aligner == Aligner("mtcnn", sha256_of(own))
    elif command == "detect":
        assert set(csv.read_csv(table)["score"].to_pylist()) == {0.5}
    else:
        (found,) = json.loads(figures.read_text())
        assert found["detector"]["sha256"] == sha256_of(own)


@pytest.mark.parametrize("command", ["detect", "eval-detector"])
def test_the_side_for_the_search_goes_to_an_onnx_detector_alone(photos, tmp_path, monkeypatch, command):
    asked = {}

    def opened(*_, **options):
        asked.update(options)
        return Detector()

    (photos / "faces.csv").write_text("path,left,top,right,bottom\nnone.png,,,,\n")
    monkeypatch.setattr("data_prep.detectors.open.open_detector", opened)
    arguments = [photos / "faces.csv"] if command == "eval-detector" else [photos, "--table", photos / "found.csv"]
    arguments += ["--longer-side", 1024]
    assert "--longer-side 1024 goes with --detector FILE.onnx" in str(run(*arguments, command=command).exception)
    assert not asked
    run(*arguments, "--detector", "net.onnx", command=command)
    for name in ("faces.csv", "found.csv"):
        (photos / name).unlink(missing_ok=True)
    assert asked["side_px"] == 1024
