"""What the cascade learns from: overlaps, regions, offsets, crops, thresholds."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.faces.overlap import overlaps
from data_prep.mtcnn.boxes import pixels, regress
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.training.choice import Chosen, Known, choose, wanted
from data_prep.mtcnn.training.config import DetectorRecipe
from data_prep.mtcnn.training.crops import _table, encoded_crops
from data_prep.mtcnn.training.frames import boxes_of, mirrored, mirrored_regions, offsets, positions, regions_of
from data_prep.mtcnn.training.losses import FACE, LANDMARK, NEGATIVE, PART
from data_prep.mtcnn.training.run_config import cascade_config
from data_prep.mtcnn.training.stage import NAMES, Stage, Trained
from data_prep.mtcnn.training.thresholds import (
    HIGHEST,
    LOWEST,
    Judged,
    judge_candidates,
    judge_faces,
    threshold_by_false_alarms,
    threshold_by_recall,
)
from data_prep.mtcnn.weights import open_networks
from data_prep.mtcnn.windows import CHANNELS, SumTables, cells
from dist_train.runtime.ranks import ALONE
from tests.prep.plain_faces import PLACES, plain_photo

SIZE = (200, 300)
FACES = np.array([[40.0, 50, 100, 130], [180, 60, 250, 150], [20, 10, 32, 24]])
POINTS = FACES[:, None, :2] + PLACES * (FACES[:, None, 2:] - FACES[:, None, :2])


def photo(ignored=(False, False, False), landmarks=POINTS):
    return AnnotatedPhoto("a", Path("a"), FACES.astype(np.float32), landmarks.astype(np.float32), np.array(ignored))


def plain_overlap(a, b):
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared)


def levels(encoded):
    """Crops [n, side, side, 3], red first, of their files."""
    return np.stack([cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for data in encoded])


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
        best = [plain_overlap(region, other) for other in known.faces]
        assert face == (-1 if kind == NEGATIVE else np.argmax(best))
        low, high = {NEGATIVE: (0, 0.3), PART: (0.4, 0.65), FACE: (0.65, 1), LANDMARK: (0.65, 1)}[int(kind)]
        assert low <= max(best) <= high


def test_what_the_networks_before_found_is_learnt_from_before_what_is_drawn():
    known = Known.of(photo((False, False, True)), 20)
    sides = FACES[:2, 2:] - FACES[:2, :2]
    faces = np.concatenate([FACES[:2, :2], FACES[:2, :2] + 0.97 * sides], 1)
    parts = np.concatenate([FACES[:1, :2], FACES[:1, :2] + 1.3 * sides[:1]], 1)
    background = np.array([[110.0, 10, 160, 60], [105.5, 130, 170.5, 195], [260.2, 150, 295.2, 185]])
    found = np.concatenate([faces, parts, background])
    for most in (wanted(7), wanted(70)):
        chosen = choose(known, SIZE, most, np.random.default_rng(0), found, 20)
        for kind, mine in ((NEGATIVE, background), (PART, parts), (FACE, faces)):
            first = chosen.regions[chosen.kind == kind][: len(mine)]
            assert len(first) == min(most[kind], len(mine))
            assert (first[:, None] == mine).all(2).any(1).all()


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
    found = None if network == "pnet" else np.empty((0, 4))  # whole pixels, or fractions
    chosen = choose(known, SIZE, wanted(35), np.random.default_rng(0), found, 20)
    width = SIZE[1]
    points = known.points[:, [1, 0, 2, 4, 3]] * [-1, 1] + [width - 1, 0]  # of middles of pixels
    other = Known(mirrored(known.faces, width), points, known.ignored)
    there = _table(network, chosen._replace(regions=mirrored_regions(chosen.regions, width)), other, width)
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
    assert np.abs(seen.permute(0, 2, 3, 1).numpy() - levels(encoded)).max() <= 0.51


def test_a_mirrored_crop_is_what_the_detector_sees_of_the_mirrored_photo():
    picture = plain_photo(np.random.default_rng(0), SIZE, 2)[0]
    regions = np.array([[10, 20, 60, 70], [30.3, 40.6, 90.9, 101], [-20.5, 30.2, 90.1, 140.8], [250.7, 150, 331, 230]])
    number = np.zeros(len(regions), np.int64)
    there = np.ascontiguousarray(picture[:, ::-1])
    here = levels(encoded_crops([picture], number, regions, 24))
    seen = levels(encoded_crops([there], number, mirrored_regions(regions, SIZE[1]), 24))
    np.testing.assert_array_equal(here[:, :, ::-1], seen)


@pytest.mark.parametrize("network", ["rnet", "onet"])
def test_a_point_lies_as_far_from_its_answer_in_mirrored_crops_as_in_plain_ones(network):
    rng = np.random.default_rng(0)
    nose = np.array([140.3, 95.8])  # 0 is the middle of a pixel
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    spot = 255 * np.exp(-((columns - nose[0]) ** 2 + (rows - nose[1]) ** 2) / 18)
    picture = np.repeat(spot.round().astype(np.uint8)[..., None], 3, 2)
    known = Known(np.array([[105.0, 60, 175, 130]]), np.tile(nose, (1, 5, 1)), FACES[:0])
    side = rng.uniform(60, 90, (600, 1))
    start = nose + rng.uniform(-10, 10, (600, 2)) - side / 2
    chosen = Chosen(np.full(600, LANDMARK), np.concatenate([start, start + side], 1), np.zeros(600, np.int64))
    crops = levels(encoded_crops([picture], np.zeros(600, np.int64), chosen.regions, 48))[..., 0].astype(np.float64)
    table = _table(network, chosen, known, SIZE[1])
    off = []  # pixels of the photo
    for seen, answers in ((crops, table[:, 8:18]), (crops[:, :, ::-1], table[:, 18:])):
        place = (seen.sum(1) * (np.arange(48) + 0.5)).sum(1) / seen.sum((1, 2)) / 48
        off.append(((place - answers[:, 4]) * side[:, 0]).mean())
    assert off[0] == pytest.approx(off[1], abs=0.05)  # 1.0 apart where the fractions of regions are mirrored, too


def test_batches_are_mixed_as_in_the_paper(tmp_path):
    recipe = DetectorRecipe(out=tmp_path, sets=(tmp_path,))
    for section in recipe.networks().values():
        data = cascade_config(recipe, section, tmp_path / "crops", tmp_path / "run").data
        sets = {Path(each.path).relative_to(tmp_path / "crops").as_posix(): each.weight for each in (data, *data.mix)}
        assert sets == {"negatives": 3, "parts": 1, "faces": 1, "landmarks": 2}
        assert wanted(section.crops) == [24, 8, 8, 16]


@pytest.mark.parametrize(("network", "after"), [("rnet", "pnet"), ("onet", "rnet")])
def test_a_network_is_shown_what_the_one_before_finds(network, after, tmp_path):
    networks = open_networks()
    trained = {
        name: Trained(each, threshold)
        for (name, each), threshold in zip(networks.by_name().items(), networks.thresholds, strict=True)
    }
    before = {name: each for name, each in trained.items() if NAMES.index(name) < NAMES.index(network)}
    recipe = DetectorRecipe(out=tmp_path, sets=(tmp_path,), device="cpu")
    stage = Stage(network, tmp_path, recipe, None, before, ALONE)
    pictures = [plain_photo(np.random.default_rng(seed), SIZE, 2)[0] for seed in range(3)]
    found = Detector("cpu", recipe.min_face_px, precision=torch.float32).candidates(pictures, after)
    assert sum(len(each.boxes) for each in found)
    for mine, theirs in zip(stage._proposals()(pictures), found, strict=True):
        np.testing.assert_array_equal(mine, regions_of(theirs.boxes))


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
