"""What the cascade learns from: overlaps, regions, offsets, crops, thresholds."""

import cv2
import numpy as np
import pytest
import torch

from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.overlap import overlaps
from data_prep.mtcnn.boxes import pixels, regress
from data_prep.mtcnn.training.choice import Known, choose, wanted
from data_prep.mtcnn.training.crops import _table, encoded_crops
from data_prep.mtcnn.training.frames import boxes_of, mirrored, offsets, positions, regions_of
from data_prep.mtcnn.training.losses import FACE, LANDMARK, NEGATIVE, PART
from data_prep.mtcnn.training.thresholds import (
    HIGHEST,
    LOWEST,
    Judged,
    judge_candidates,
    judge_faces,
    threshold_by_false_alarms,
    threshold_by_recall,
)
from data_prep.mtcnn.windows import CHANNELS, SumTables, cells
from tests.prep.plain_faces import PLACES, plain_photo

SIZE = (200, 300)
FACES = np.array([[40.0, 50, 100, 130], [180, 60, 250, 150], [20, 10, 32, 24]])
POINTS = FACES[:, None, :2] + PLACES * (FACES[:, None, 2:] - FACES[:, None, :2])


def photo(ignored=(False, False, False), landmarks=POINTS):
    from pathlib import Path

    return AnnotatedPhoto("a", Path("a"), FACES.astype(np.float32), landmarks.astype(np.float32), np.array(ignored))


def plain_overlap(a, b):
    """Intersection over union by counting the pixels of whole-numbered boxes."""
    canvas = np.zeros((2, 400, 400), bool)
    for layer, (left, top, right, bottom) in zip(canvas, np.array([a, b]).astype(int) + 50, strict=True):
        layer[top:bottom, left:right] = True
    return (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()


@pytest.mark.parametrize("found", [None, FACES[:, [0, 1, 3, 3]] * 1.02])
def test_each_chosen_region_has_the_overlap_of_its_kind(found):
    known = Known.of(photo((False, False, True)), 20)
    assert len(known.faces) == 2
    assert len(known.ignored) == 1
    chosen = choose(known, SIZE, wanted(70), np.random.default_rng(0), found, 20)
    assert sorted(set(chosen.kind.tolist())) == [NEGATIVE, PART, FACE, LANDMARK]
    assert [(chosen.kind == kind).sum() for kind in range(4)] <= wanted(70)
    for kind, region, face in zip(*chosen, strict=True):
        if found is None:  # whole pixels in the photo, squares
            np.testing.assert_array_equal(region, region.round())
            assert region.min() >= 0
            assert (region[2:] <= SIZE[::-1]).all()
            assert region[2] - region[0] == region[3] - region[1]
        if found is not None:
            continue
        best = [plain_overlap(region, other) for other in known.faces]
        assert face == (-1 if kind == NEGATIVE else np.argmax(best))
        low, high = {NEGATIVE: (0, 0.3), PART: (0.4, 0.65), FACE: (0.65, 1), LANDMARK: (0.65, 1)}[int(kind)]
        assert low <= max(best) <= high


def test_a_choice_is_that_of_its_seed_and_photos_without_points_give_no_landmark_faces():
    known = Known.of(photo(landmarks=np.full((3, 5, 2), np.nan)), 20)
    first, second = (choose(known, SIZE, wanted(70), np.random.default_rng(4), None, 20) for _ in range(2))
    assert all(map(np.array_equal, first, second))
    assert LANDMARK not in first.kind
    empty = choose(Known(FACES[:0], POINTS[:0], FACES[:0]), SIZE, wanted(70), np.random.default_rng(4), None, 20)
    assert set(empty.kind.tolist()) == {NEGATIVE}


@pytest.mark.parametrize("network", ["pnet", "rnet", "onet"])
def test_offsets_are_what_the_detector_needs_to_give_the_very_box_of_the_face(network):
    regions = np.array([[36.0, 50, 116, 130], [170, 50, 270, 150], [22, 9, 36, 23]])
    boxes = boxes_of(regions)
    if network == "pnet":  # as the cascade makes boxes of its windows, but for whole pixels
        scale = 12 / (regions[:, 2:3] - regions[:, :1])
        start = regions[:, :2] * scale
        boxes = np.concatenate([(start + 1) / scale, (start + 12) / scale], 1)
    answers = torch.from_numpy(offsets(network, regions, FACES))
    found = regress(torch.from_numpy(boxes), answers, 0 if network == "pnet" else 1).numpy()
    np.testing.assert_allclose(found if network == "onet" else regions_of(found), FACES)


@pytest.mark.parametrize("network", ["pnet", "rnet", "onet"])
def test_a_mirrored_crop_has_the_answers_of_the_mirrored_photo(network):
    known = Known.of(photo(), 12)
    chosen = choose(known, SIZE, wanted(35), np.random.default_rng(0), None, 20)
    width = SIZE[1]
    points = known.points[:, [1, 0, 2, 4, 3]] * [-1, 1] + [width - 1, 0]  # of middles of pixels
    other = Known(mirrored(known.faces, width), points, known.ignored)
    there = _table(network, chosen._replace(regions=mirrored(chosen.regions, width)), other, width)
    here = _table(network, chosen, known, width)
    np.testing.assert_allclose(here[:, 4:8], there[:, :4], atol=1e-6)
    np.testing.assert_allclose(here[:, 18:], there[:, 8:18], atol=1e-6)
    np.testing.assert_allclose(positions(known.faces, known.points)[0], PLACES, atol=1e-6)


def test_crops_are_what_the_detector_sees_to_half_a_grey_level():
    picture = plain_photo(np.random.default_rng(0), SIZE, 2)[0]
    regions = np.array([[10.0, 20, 60, 70], [-20.5, 30.2, 90.1, 140.8], [250, 150, 330, 230]])
    tables = SumTables([picture], np.empty((cells(picture), CHANNELS), np.int32), torch.device("cpu"))
    high, wide = torch.tensor([SIZE] * 3).unbind(1)
    inside = pixels(torch.from_numpy(boxes_of(regions)).float(), high, wide)
    seen = tables.crops(torch.zeros(3, dtype=torch.long), inside, 24)[:, :3] * 128 + 127.5
    encoded = encoded_crops([picture], np.zeros(3, np.int64), regions, 24)
    levels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for data in encoded]
    assert np.abs(seen.permute(0, 2, 3, 1).numpy() - np.stack(levels)).max() <= 0.51


def test_thresholds_leave_a_share_of_the_faces_or_a_number_of_false_alarms():
    judged = Judged(np.array([0.9, 0.8, 0.7, 0.6, 0.0]), np.array([0.85, 0.65, 0.3]), 2)
    assert judged.recall(threshold_by_recall(judged, 1.0)) == 0.8
    assert judged.recall(threshold_by_recall(judged, 0.75)) == 0.6
    for per_photo in (0.5, 1.0):
        assert judged.false_alarms_per_photo(threshold_by_false_alarms(judged, per_photo)) == per_photo
    assert threshold_by_false_alarms(judged, 2) == LOWEST
    assert threshold_by_false_alarms(judged._replace(false_alarms=np.ones(9)), 0.1) == HIGHEST
    assert threshold_by_recall(judged._replace(found=np.zeros(3)), 0.9) == LOWEST


def test_a_face_is_found_once_and_what_lies_in_an_ignored_box_is_no_false_alarm():
    known = Known(FACES[:2], POINTS[:2], FACES[2:])
    boxes = np.array([FACES[0] + 1, FACES[0], FACES[2], [260, 160, 290, 190]])
    scores = np.array([0.8, 0.9, 0.7, 0.6], np.float32)
    judged = judge_faces(boxes, scores, known)
    np.testing.assert_allclose(judged.found, [0.9, 0], atol=1e-6)
    np.testing.assert_allclose(sorted(judged.false_alarms), [0.6, 0.8], atol=1e-6)
    together = Judged.together([judged, judge_candidates(boxes, scores, known)])
    assert together.photos == 2
    np.testing.assert_allclose(together.found[2:], [0.9, 0], atol=1e-6)
    np.testing.assert_allclose(together.false_alarms[2:], [0.6], atol=1e-6)
    assert overlaps(FACES, FACES).diagonal().tolist() == [1, 1, 1]
