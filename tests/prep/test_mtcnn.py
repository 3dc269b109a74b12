"""The whole cascade: against the plain one, against itself in other batches, against the reference detector."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from data_prep.decode import decode
from data_prep.mtcnn import cascade
from data_prep.mtcnn.cascade import Detector, Limits
from dist_train.errors import UserError
from tests.prep import plain_mtcnn

SHARED = Path(__file__).parents[3] / "shared" / "faces"
PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"  # 512x600, one face


def portrait(scale=1.0):
    picture = decode(PORTRAIT.read_bytes()).pixels
    return picture if scale == 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def crowd():
    """Twelve faces of many sizes."""
    canvas = np.full((420, 640, 3), 90, np.uint8)
    for number in range(12):
        face = portrait(0.15 + 0.015 * number)[:, :: 1 if number % 2 else -1]
        top, left = 5 + 138 * (number // 4), 5 + 158 * (number % 4)
        canvas[top : top + face.shape[0], left : left + face.shape[1]] = face[: 420 - top, : 640 - left]
    return canvas


def mixed():
    """Pictures of all sizes, some with faces."""
    rng = np.random.default_rng(0)
    return [
        portrait(0.5),
        rng.integers(0, 256, (90, 130, 3), dtype=np.uint8),
        portrait(0.31)[:, ::-1],
        np.zeros((1, 1, 3), np.uint8),
        np.full((300, 20, 3), 200, np.uint8),
        crowd(),
        np.zeros((1, 400, 3), np.uint8),
        portrait(0.777),
        portrait(0.5),
    ]


def assert_equal(a, b, px=0.01):
    assert len(a) == len(b)
    for faces, others in zip(a, b, strict=True):
        assert faces.boxes.shape == others.boxes.shape
        assert np.allclose(faces.boxes, others.boxes, atol=px)
        assert np.allclose(faces.scores, others.scores, atol=1e-4)
        assert np.allclose(faces.landmarks, others.landmarks, atol=px)


@pytest.fixture(scope="module")
def together():
    return Detector().detect(mixed())


def test_a_portrait_has_one_face_with_landmarks_in_their_places():
    (faces,) = Detector().detect([portrait()])
    assert len(faces.scores) == 1
    assert faces.scores[0] > 0.99
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert left_mouth[0] < right_mouth[0]
    box = faces.boxes[0]
    assert (faces.landmarks[0] > box[:2]).all()
    assert (faces.landmarks[0] < box[2:]).all()


@pytest.mark.parametrize("name", ["portrait", "crowd"])
def test_faces_are_those_of_the_plain_cascade(name):
    picture = {"portrait": portrait(0.4), "crowd": crowd()}[name]
    expected = plain_mtcnn.detect(picture)
    (faces,) = Detector().detect([picture])
    assert len(expected) >= {"portrait": 1, "crowd": 10}[name]
    assert len(faces.scores) == len(expected)
    for number, (box, score, landmarks) in enumerate(expected):
        assert np.allclose(faces.boxes[number], box, atol=0.01)
        assert np.allclose(faces.landmarks[number], landmarks, atol=0.01)
        assert abs(faces.scores[number] - score) < 1e-4


def test_other_thresholds_and_sizes_reach_the_plain_cascade_too():
    picture = crowd()[:150]
    options = {"min_face_px": 31, "thresholds": (0.5, 0.5, 0.4), "factor": 0.6}
    expected = plain_mtcnn.detect(picture, **options)
    (faces,) = Detector(**options).detect([picture])
    assert np.allclose(faces.boxes, np.stack([box for box, *_ in expected]), atol=0.01)


def test_a_batch_of_mixed_sizes_gives_what_single_pictures_give(together):
    detector = Detector()
    assert_equal(together, [detector.detect([picture])[0] for picture in mixed()])


def test_equal_pictures_of_a_batch_get_equal_faces(together):
    assert_equal([together[0]], [together[-1]])


def test_groups_of_few_pixels_change_nothing(together):
    assert_equal(together, Detector(batch_px=1).detect(mixed()))
    assert_equal(together, Detector(batch_px=200_000).detect(mixed()))


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        (Limits((64, 100), 1, 1), None),
        (Limits((24, 24), 7, 3), 5),  # a canvas for a few windows: the crowd alone would take a minute
        (Limits((2048, 2048), 8192, 4096), None),
    ],
)
def test_neither_canvas_nor_chunks_change_the_result(together, limits, count, monkeypatch):
    monkeypatch.setitem(cascade.LIMITS, "cpu", limits)
    assert_equal(together[:count], Detector().detect(mixed()[:count]))


def test_one_detector_serves_batch_after_batch(together):
    detector = Detector()
    detector.detect([portrait()])
    assert_equal(together, detector.detect(mixed()))
    assert_equal(together[:3], detector.detect(mixed()[:3]))


def test_pictures_without_faces_have_empty_arrays(together):
    for number in (1, 3, 4, 6):
        assert together[number].boxes.shape == (0, 4)
        assert together[number].scores.shape == (0,)
        assert together[number].landmarks.shape == (0, 5, 2)
    assert Detector().detect([]) == []


def test_faces_are_sorted_by_certainty(together):
    assert len(together[5].scores) >= 10
    assert (np.diff(together[5].scores) <= 0).all()


def test_views_of_arrays_are_taken():
    picture = portrait(0.5)
    view = np.ascontiguousarray(picture[:, ::-1])[:, ::-1]
    detector = Detector()
    assert_equal(detector.detect([picture]), detector.detect([view]))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_same_faces(precision):
    pictures = [portrait(0.5), portrait(0.3)]
    for full, half in zip(Detector().detect(pictures), Detector(precision=precision).detect(pictures), strict=True):
        assert half.boxes.shape == full.boxes.shape
        width = (full.boxes[:, 2] - full.boxes[:, 0])[:, None]
        assert (np.abs(half.boxes - full.boxes) < 0.1 * width).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_faces(together):
    assert_equal(together, Detector("cuda", precision=torch.float32).detect(mixed()), px=0.5)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_what_is_no_rgb_picture_is_named(picture):
    with pytest.raises(UserError, match=r"images\[1\]: .*expected uint8 \[height, width, 3\]"):
        Detector().detect([portrait(0.1), picture])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_face_px": 11}, "min_face_px is 11, expected at least 12"),
        ({"factor": 1.0}, "factor is 1.0"),
        ({"thresholds": (0.6, 0.7, 1)}, "thresholds are"),
        ({"overlaps": (0.5, 0.7, 0, 0.7)}, "overlaps are"),
        ({"batch_px": 0}, "batch_px is 0"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Detector(**options)


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.skipif(not SHARED.exists(), reason="the reference photos are not beside this repository")
def test_faces_are_those_of_the_reference_detector():
    reference = json.loads((SHARED / "reference.json").read_text())["images"]
    found = Detector().detect([decode((SHARED / name).read_bytes()).pixels for name in reference])
    expected = matched = extra = 0
    distances = []
    for faces, photo in zip(found, reference.values(), strict=True):
        left = list(range(len(faces.boxes)))
        expected += len(photo["faces"])
        for face in photo["faces"]:
            best = max(left, key=lambda number: overlap(faces.boxes[number], face["box"]), default=None)
            if best is None or overlap(faces.boxes[best], face["box"]) < 0.85:
                continue
            left.remove(best)
            matched += 1
            away = np.linalg.norm(faces.landmarks[best] - face["landmarks"], axis=1).mean()
            distances.append(away / (face["box"][2] - face["box"][0]))
        extra += len(left)
    assert matched >= 0.97 * expected
    assert extra <= 0.03 * expected
    assert np.mean(distances) < 0.02
