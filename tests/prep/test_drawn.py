"""Drawn photos are the same bytes every time, and what is written of their faces is true."""

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.drawn.canvas import Canvas
from data_prep.drawn.head import Head
from data_prep.drawn.photo import PhotoSpec, draw_photo
from data_prep.faces.annotated import open_faces
from data_prep.mtcnn.cascade import Detector


def draw(*arguments):
    return CliRunner().invoke(app, ["drawn-faces", *map(str, arguments)], catch_exceptions=True)


@pytest.mark.job
def test_processes_draw_the_photos_that_one_would(tmp_path):
    result = draw(tmp_path / "new", "--photos", 101, "--size", "64x48", "--min-face", 10, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "101 photos with" in result.output
    faces = open_faces(tmp_path / "new")
    assert len(faces.photos) == 101
    for number in (3, 99, 100):  # the last is in a unit of its own
        drawn = draw_photo(PhotoSpec(64, 48, 10), number)
        photo = faces.photos[number]
        assert photo.path.read_bytes() == drawn.jpeg
        assert np.allclose(photo.boxes, drawn.boxes, atol=0.01)
        assert np.allclose(photo.landmarks, drawn.points, atol=0.01)


def test_photos_depend_on_their_number_and_the_seed_alone():
    first, again, other, seeded = (
        draw_photo(PhotoSpec(120, 90, seed=seed), number).jpeg for seed, number in ((0, 7), (0, 7), (0, 8), (1, 7))
    )
    assert first == again
    assert len({first, other, seeded}) == 3


def test_faces_are_in_their_photo_and_as_large_as_asked_for():
    spec = PhotoSpec(200, 150, 24, 90, 4)
    drawn = [draw_photo(spec, number) for number in range(40)]
    boxes = np.concatenate([each.boxes for each in drawn])
    points = np.concatenate([each.points for each in drawn])
    assert 0.02 < np.mean([not len(each.boxes) for each in drawn]) < 0.3
    assert max(len(each.boxes) for each in drawn) >= 3
    seen = (np.minimum(boxes[:, 2:], (200, 150)) - boxes[:, :2].clip(0)).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert seen.min() > 0.79
    heights = boxes[:, 3] - boxes[:, 1]
    assert 0.7 * 24 < heights.min() < 40
    assert 60 < heights.max() < 1.35 * 90  # a head that is tilted has a higher box
    margin = 0.1 * (boxes[:, 2:] - boxes[:, :2])[:, None]
    assert (points > boxes[:, None, :2] - margin).all()
    assert (points < boxes[:, None, 2:] + margin).all()
    left_eye, right_eye, _, left_mouth, right_mouth = points.swapaxes(0, 1)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 1] > left_eye[:, 1]).all()
    assert (right_mouth[:, 1] > right_eye[:, 1]).all()


def test_a_head_that_looks_to_the_right_shows_more_of_its_left_cheek():
    random = np.random.default_rng(0)
    heads = [Head.random(random, 100) for _ in range(40)]
    ahead, aside = (min(heads, key=lambda head: abs(head.yaw - yaw)) for yaw in (0.0, 0.6))
    for head, least, most in ((ahead, 0.43, 0.57), (aside, 0.6, 1.0)):
        left, _, right, _ = head.box()
        assert least < (head.five_points()[2, 0] - left) / (right - left) < most


def test_what_is_not_drawn_on_stays_as_it_is():
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    before = photo.copy()
    canvas = Canvas(photo, -10, 5, 30, 60, 3)
    canvas.fill(np.array([[10.0, 10], [20, 10], [20, 20], [10, 20]]), np.array([9.0, 8, 7]))
    canvas.shade(np.full((4, 4), 0.5, np.float32))
    canvas.finish()
    assert (photo[11:19, 11:19] == (9, 8, 7)).all()
    photo[9:21, 9:21] = before[9:21, 9:21]
    assert np.array_equal(photo, before)


@pytest.mark.job
def test_the_shipped_detector_takes_most_drawn_faces_for_faces():
    spec = PhotoSpec(faces=2, min_face=60)
    drawn = [draw_photo(spec, number) for number in range(24)]
    found = Detector().detect([each.pixels for each in drawn])
    hits = [
        any(abs(box - seen).max() < 0.35 * (box[2] - box[0]) for seen in faces.boxes)
        for each, faces in zip(drawn, found, strict=True)
        for box in each.boxes
    ]
    assert np.mean(hits) > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "320"), "--size '320': expected WIDTHxHEIGHT"),
        (("--size", "9000x20"), "expected WIDTHxHEIGHT"),
        (("--min-face", 100, "--max-face", 50), "--min-face 100 with --max-face 50"),
        (("--min-face", 300), "at most 0.9 of the height"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, arguments, message):
    result = draw(tmp_path / "new", *arguments)
    assert message in str(result.exception)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_not_drawn_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in str(draw(tmp_path, "--photos", 1).exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
