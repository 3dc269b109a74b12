"""Photos on their side or head: searched in four turns where no face is sure, and found where they lie."""

import itertools
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.align import crop_landmarks
from data_prep.align_transform import Align
from data_prep.decode import decode
from data_prep.detectors.open import open_detector
from data_prep.detectors.upright import TURNS, detect_turned
from data_prep.mtcnn.faces import Faces
from dist_train.data.reject import Reject

REAL = Path(__file__).parents[3] / "shared" / "real"
SCRFD, LFW = REAL / "scrfd_2.5g_bnkps.onnx", REAL / "lfw-deepfunneled.tar"


class Tilting:
    """A detector that finds a face only where the picture's upper left pixel is the brightest, as sure as it is."""

    name, digest, has_points, sure = "tilting", "0" * 64, True, 0.8

    def __init__(self):
        self.seen = []

    def detect(self, images):
        self.seen.append(len(images))
        return [self._one(image) for image in images]

    def _one(self, image):
        bright = np.float32(image.max() / 255)
        if image[0, 0, 0] < image.max():
            return Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
        points = np.float32([[[4, 3], [8, 3], [6, 5], [4, 8], [8, 8]]])
        return Faces(np.float32([[2, 1, 10, 11]]), bright[None], points)


@pytest.mark.parametrize("turn", TURNS)
def test_a_photo_that_lies_is_searched_in_all_turns_and_its_face_is_where_it_lies(turn):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[0, 0] = 200  # a face that is not sure
    upright[3, 4] = 100  # its left eye
    detector = Tilting()
    lying = np.ascontiguousarray(np.rot90(upright, turn // 90))  # counterclockwise, so `turn` brings it back
    (found,) = detect_turned(detector, [lying])
    assert (found.turn, detector.seen) == (turn, [1, 1, 1, 1])
    x, y = found.faces.landmarks[0, 0].round().astype(int)
    assert lying[y, x, 0] == 100
    left, top, right, bottom = found.faces.boxes[0]
    assert right - left == (8 if turn in (0, 180) else 10)
    assert (found.faces.landmarks[0] >= [left, top]).all()
    assert (found.faces.landmarks[0] <= [right, bottom]).all()
    crop = crop_landmarks(lying, found.faces.landmarks[0], 112)
    assert np.abs(crop.astype(int) - crop_landmarks(upright, Tilting()._one(upright).landmarks[0], 112)).max() <= 2


def test_only_photos_without_a_sure_face_are_turned():
    sure, doubtful, empty = (np.zeros((20, 30, 3), np.uint8) for _ in range(3))
    sure[0, 0], doubtful[0, 0], empty[10, 10] = 255, 150, 250
    detector = Tilting()
    found = detect_turned(detector, [sure, sure, doubtful, sure, empty])
    assert detector.seen == [5, 2, 2, 2]
    assert [each.turn for each in found] == [0] * 5
    assert [len(each.faces.scores) for each in found] == [1, 1, 1, 1, 0]
    detector.seen.clear()
    detect_turned(detector, [sure, sure])
    assert detector.seen == [2], "no cost where every photo has a sure face"


@pytest.mark.job  # the cascade on real photos
@pytest.mark.parametrize("crop", ["landmarks", "box"])
def test_photos_on_side_and_head_give_the_crops_of_upright_ones(crop):
    from tests.prep.test_mtcnn import portrait

    def made(options, *pictures):
        found = options.open()([cv2.imencode(".png", each[..., ::-1])[1].tobytes() for each in pictures])
        return [crops[0] for crops in found if not isinstance(crops, Reject)]

    photo = portrait(0.4)
    lying = [np.ascontiguousarray(np.rot90(photo, turns)) for turns in range(4)]
    (expected,) = made(Align(crop=crop), photo)
    found = made(Align(crop=crop, upright=True), *lying)
    assert [each.record.get("turn", 0) for each in found] == list(TURNS)
    for each in found:
        pixels, wanted = (decode(one.data).pixels.astype(int) for one in (each, expected))
        assert np.abs(pixels - wanted).mean() < 2
    assert len(made(Align(crop=crop), *lying)) < 4, "without the option they are not found"


@pytest.mark.job  # the cascade on real photos
@pytest.mark.skipif(not LFW.is_file(), reason="no LFW here: ../shared/real")
@pytest.mark.parametrize("file", [None, SCRFD])
def test_real_photos_turned_by_hand_are_turned_back(file):
    detector = open_detector(file)
    with tarfile.open(LFW) as tar:
        chosen = list(itertools.islice((member for member in tar if member.name.endswith(".jpg")), 0, 8, 2))
        photos = [decode(tar.extractfile(member).read()).pixels for member in chosen]
    upright = detector.detect(photos)
    for turn in TURNS[1:]:
        found = detect_turned(detector, [np.ascontiguousarray(np.rot90(photo, turn // 90)) for photo in photos])
        assert [each.turn for each in found] == [turn] * len(photos)
        for each, expected in zip(found, upright, strict=True):
            assert each.faces.scores[0] == pytest.approx(expected.scores[0], abs=1e-3)
