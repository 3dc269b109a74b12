import cv2
import numpy as np
import pytest

from data_prep.align import choose, crop_box, crop_centre, crop_landmarks, runner_up
from data_prep.mtcnn.faces import Faces
from dist_train.data.alignment import TEMPLATE_112, similarity_transform

RNG = np.random.default_rng(0)


def faces(boxes, scores):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Faces(boxes, np.asarray(scores, np.float32), np.zeros((len(boxes), 5, 2), np.float32))


def turned(points, angle, scale, shift):
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ (scale * rotation).T + shift


@pytest.mark.parametrize("angle", [0, 0.3, -1.2, np.pi])
@pytest.mark.parametrize("scale", [0.2, 1, 7])
def test_the_transform_finds_rotation_scale_and_shift(angle, scale):
    source = turned(TEMPLATE_112, angle, scale, [30, -400])
    matrix = similarity_transform(source, TEMPLATE_112)
    assert np.allclose(source @ matrix[:, :2].T + matrix[:, 2], TEMPLATE_112)


def test_the_transform_is_the_best_of_its_neighbours():
    source = TEMPLATE_112 * 2 + RNG.normal(0, 4, (5, 2))

    def error(matrix):
        return ((source @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE_112) ** 2).sum()

    best = similarity_transform(source, TEMPLATE_112)
    for _ in range(200):
        a, b, x, y = RNG.normal(0, [1e-3, 1e-3, 0.05, 0.05])
        other = best + np.array([[a, -b, x], [b, a, y]])
        assert error(best) <= error(other)


def test_the_transform_never_reflects():
    mirrored = TEMPLATE_112 * [-1, 1]
    assert np.linalg.det(similarity_transform(mirrored, TEMPLATE_112)[:, :2]) > 0


def dots(points, height=400, width=400):
    """A picture with a bright dot at each point."""
    picture = np.zeros((height, width, 3), np.uint8)
    for x, y in points:
        cv2.circle(picture, (round(x), round(y)), 6, (255, 255, 255), -1)
    return picture


@pytest.mark.parametrize("image_size", [112, 224])
@pytest.mark.parametrize("angle", [0, 0.5, -2])
def test_landmarks_arrive_at_the_template(image_size, angle):
    points = turned(TEMPLATE_112 - 56, angle, 2, 200)
    aligned = crop_landmarks(dots(points), points.astype(np.float32), image_size)
    assert aligned.shape == (image_size, image_size, 3)
    for x, y in TEMPLATE_112 * image_size / 112:
        assert aligned[round(y), round(x)].min() > 200
    assert aligned.mean() < 60


def test_beyond_the_picture_is_black():
    white = np.full((60, 60, 3), 255, np.uint8)
    aligned = crop_landmarks(white, TEMPLATE_112 + np.array([0, 56]), 112)
    assert not aligned[100:].any()
    boxed = crop_box(white, np.array([30, 0, 90, 60]), 60, 0)
    assert boxed[:, :30].min() == 255
    assert not boxed[:, 30:].any()
    assert not crop_box(white, np.array([500, 500, 600, 600]), 50, 0.2).any()


def test_box_and_margin_cut_a_square_about_the_centre():
    picture = RNG.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    assert np.array_equal(crop_box(picture, np.array([100, 50, 140, 90]), 40, 0), picture[50:90, 100:140])
    assert np.array_equal(crop_box(picture, np.array([110, 50, 130, 90]), 60, 0.25), picture[40:100, 90:150])


def test_the_centre_crop_is_the_largest_square():
    picture = RNG.integers(0, 255, (100, 160, 3), dtype=np.uint8)
    assert np.array_equal(crop_centre(picture, 100), picture[:, 30:130])
    assert crop_centre(picture[:1], 112).shape == (112, 112, 3)


def test_each_choice_takes_its_face():
    found = faces([[0, 0, 30, 30], [10, 10, 90, 100], [90, 90, 112, 112]], [0.99, 0.8, 0.9])
    assert choose(found, "surest", 200, 200) == [0]
    assert choose(found, "largest", 200, 200) == [1]
    assert choose(found, "central", 200, 200) == [2]
    assert choose(found, "all", 200, 200) == [0, 1, 2]


# A bystander at the left border, 100 px wide; whom the photo is of, in the middle, 80 px; a small face behind.
STREET = faces([[0, 60, 100, 160], [110, 80, 190, 160], [148, 20, 160, 32]], [0.99, 0.9, 0.95])


def test_the_main_face_is_large_and_near_the_centre():
    assert choose(STREET, "main", 240, 300) == [1]
    assert choose(STREET, "largest", 240, 300) == [0]
    assert choose(STREET, "main", 240, 110) == [0], "in a photo cut at 110 px the bystander is the main face"


def insightface(boxes, height, width):
    """Its rule, written down from RetinaFace.detect, max_num = 1."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    offsets = np.vstack([(boxes[:, 0] + boxes[:, 2]) / 2 - width // 2, (boxes[:, 1] + boxes[:, 3]) / 2 - height // 2])
    return int(np.argsort(area - np.sum(np.power(offsets, 2.0), 0) * 2.0)[-1])


@pytest.mark.parametrize("seed", range(50))
def test_the_main_face_is_insightfaces(seed):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 200, (6, 2)), rng.uniform(20, 120, (6, 1))
    found = faces(np.hstack([corner, corner + side]), rng.uniform(size=6))
    assert choose(found, "main", 250, 300) == [insightface(found.boxes, 250, 300)]


@pytest.mark.parametrize("choice", ["main", "surest", "largest", "central"])
def test_the_scale_of_a_photo_does_not_change_the_choice_nor_its_lead(choice):
    grown = STREET._replace(boxes=STREET.boxes * 3)
    assert choose(grown, choice, 720, 900) == choose(STREET, choice, 240, 300)
    small, large = runner_up(STREET, choice, 240, 300), runner_up(grown, choice, 720, 900)
    assert small.number == large.number
    assert small.lead == pytest.approx(large.lead)


def test_the_lead_over_the_runner_up_is_in_areas_of_the_chosen_face():
    bystander = 100**2 - 2 * (100**2 + 10**2)
    assert runner_up(STREET, "main", 240, 300) == (0, pytest.approx((80**2 - bystander) / 80**2))
    assert runner_up(STREET, "largest", 240, 300) == (1, pytest.approx((10000 - 6400) / 10000))
    assert runner_up(STREET, "surest", 240, 300) == (2, pytest.approx(0.04))
    alike = faces([[0, 0, 100, 100], [0, 0, 99, 100]], [0.9, 0.9])
    assert runner_up(alike, "largest", 240, 300) == (1, pytest.approx(0.01))


def test_where_there_is_no_choice_there_is_no_runner_up():
    assert runner_up(faces([[0, 0, 10, 10]], [1]), "main", 10, 10) is None
    assert runner_up(faces([], []), "main", 10, 10) is None
    assert runner_up(STREET, "all", 240, 300) is None


@pytest.mark.parametrize("choice", ["main", "surest", "largest", "central", "all"])
def test_without_faces_nothing_is_chosen(choice):
    assert choose(faces([], []), choice, 10, 10) == []


def test_equals_are_decided_by_score():
    found = faces([[0, 0, 10, 10], [20, 0, 30, 10]], [0.9, 0.8])
    assert all(choose(found, choice, 10, 30) == [0] for choice in ("main", "largest", "central"))
    assert all(runner_up(found, choice, 10, 30) == (1, 0) for choice in ("main", "largest", "central"))
