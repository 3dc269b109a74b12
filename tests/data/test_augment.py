"""Augmentation: the parameters' ranges, and that pixels follow the parameters."""

import cv2
import numpy as np
import pytest

from dist_train.data.augment import draw, identity, pixel_maps
from dist_train.data.config import AugmentConfig
from dist_train.data.opencv import Augmenter
from tests.data.sets import picture

OFF = {"flip": 0}
SIZE = 32


def parameters(count=400, seed=1, size=SIZE, **values):
    config = AugmentConfig.model_validate(OFF | values)
    return draw(config, seed, np.zeros(count, np.int64), np.arange(count), size)


def apply(rows, images, size=SIZE):
    augmenter = Augmenter(size)
    augmenter.load(rows)
    out = np.empty((len(images), 3, size, size), np.uint8)
    for row, image in enumerate(images):
        augmenter.apply(np.ascontiguousarray(image[:, :, ::-1]), row, out[row])
    return out.transpose(0, 2, 3, 1)  # [n, H, W, 3], red first


def test_parameters_depend_on_seed_epoch_and_place_alone():
    config = AugmentConfig(rotation=10, crop=0.5, erase=0.5)
    epochs, places = np.array([0, 3, 3]), np.array([7, 7, 2**40])
    together = draw(config, 5, epochs, places, SIZE)
    for row in range(3):
        alone = draw(config, 5, epochs[row : row + 1], places[row : row + 1], SIZE)
        assert all(np.array_equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))
    assert len(np.unique(together.linear[:, 0, 0])) == 3


def test_switching_one_change_on_leaves_the_others_as_they_were():
    few = parameters(rotation=10, brightness=0.2)
    more = parameters(rotation=10, brightness=0.2, blur=0.5, erase=0.5, jpeg=0.5, low_resolution=0.5)
    assert np.array_equal(few.linear, more.linear)
    assert np.array_equal(few.colour, more.colour)


def test_nothing_switched_on_changes_nothing():
    rows = parameters(3)
    assert all(np.array_equal(a, b) for a, b in zip(rows, identity(3, SIZE), strict=True))
    images = [picture(n) for n in range(3)]
    assert np.array_equal(apply(rows, images), np.stack(images))


def test_a_flip_comes_as_often_as_configured_and_mirrors():
    rows = parameters(2000, flip=0.3)
    flipped = rows.linear[:, 0, 0] == -1
    assert 0.25 < flipped.mean() < 0.35
    row = int(np.argmax(flipped))
    images = [picture(n) for n in range(row + 1)]
    assert np.array_equal(apply(rows, images)[row], images[row][:, ::-1])


def test_rotations_stay_within_the_configured_angle():
    rows = parameters(rotation=10)
    angles = np.rad2deg(np.arctan2(rows.linear[:, 1, 0], rows.linear[:, 0, 0]))
    assert 9 < angles.max() <= 10
    assert -10 <= angles.min() < -9
    assert abs(angles.mean()) < 1


@pytest.mark.parametrize(("brightness", "contrast", "saturation"), [(0.2, 0, 0), (0, 0.2, 0), (0, 0, 0.9)])
def test_colour_follows_the_plain_formula(brightness, contrast, saturation):
    rows = parameters(4, brightness=brightness, contrast=contrast, saturation=saturation)
    images = np.stack([picture(n) for n in range(4)])
    found = apply(rows, images).astype(float)
    # What each row's factor is can be read off its matrix.
    for row, image in enumerate(images.astype(float)):
        if brightness:
            expected = image * rows.colour[row].sum(axis=1)[0]
        elif contrast:
            expected = (image - 127.5) * rows.colour[row].sum(axis=1)[0] + 127.5
        else:
            grey = image @ [0.299, 0.587, 0.114]
            factor = rows.colour[row][0, 0] - rows.colour[row][1, 0]
            expected = factor * image + (1 - factor) * grey[:, :, None]
        assert np.abs(np.clip(np.rint(expected), 0, 255) - found[row]).max() <= 1


def test_grey_pictures_have_equal_channels():
    found = apply(parameters(2, grey=1), [picture(0), picture(1)]).astype(int)
    assert np.ptp(found, axis=3).max() <= 1


def test_a_crop_shows_a_part_of_the_picture_enlarged():
    rows = parameters(50, crop=0.5)
    scales = rows.linear[:, 0, 0]
    assert 0.5 <= scales.min() < 0.6 < 0.9 < scales.max() <= 1
    assert (np.abs(rows.shift) <= 1 - scales[:, None] + 1e-12).all()
    ramp = np.tile(np.linspace(20, 220, SIZE)[None, :, None], (SIZE, 1, 3)).astype(np.uint8)
    found = apply(rows, [ramp] * 50).astype(float)
    slope = np.polyfit(np.arange(4, SIZE - 4), found[:, SIZE // 2, 4:-4, 0].T, 1)[0]
    assert np.allclose(slope, scales * 200 / (SIZE - 1), atol=0.3)


def test_low_resolution_and_blur_take_detail_away():
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for change in ({"low_resolution": 1}, {"blur": 1}):
        rows = parameters(60, **change)
        detail = apply(rows, [image] * 60).astype(float).std(axis=(1, 2, 3))
        assert (detail <= image.std() + 1).all()
        assert detail.min() < image.std() / 2
    sides = parameters(500, low_resolution=0.5, low_resolution_scale=0.25).side
    assert sides.min() == SIZE // 4
    assert 0.4 < (sides == SIZE).mean() < 0.6


def test_jpeg_quality_is_within_its_range():
    quality = parameters(500, jpeg=0.5, jpeg_quality=20).quality
    assert set(np.unique(quality)) <= {0, *range(20, 96)}
    images = [picture(1)] * 2
    assert not np.array_equal(apply(parameters(2, jpeg=1, jpeg_quality=5), images)[1], images[1])


def test_an_erased_rectangle_is_grey_and_of_the_configured_size():
    rows = parameters(200, erase=1, erase_side=0.5)
    widths, heights = rows.box[:, 2] - rows.box[:, 0], rows.box[:, 3] - rows.box[:, 1]
    assert widths.min() >= 4 - 1
    assert max(widths.max(), heights.max()) <= 17
    assert rows.box.min() >= 0
    assert rows.box.max() <= SIZE
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    found = apply(rows, [white] * 200)
    assert ((found == 128).all(axis=3).sum(axis=(1, 2)) == widths * heights).all()


def test_maps_for_pixel_centres_and_pixel_corners_agree():
    rows = parameters(5, rotation=30, crop=0.5)
    inputs = np.full(5, 48)
    centred, cornered = pixel_maps(rows, inputs), pixel_maps(rows, inputs, centre=0)
    point = np.array([3.0, 7.0])
    a = centred[:, :, :2] @ point + centred[:, :, 2] + 0.5
    b = cornered[:, :, :2] @ (point + 0.5) + cornered[:, :, 2]
    assert np.allclose(a, b)


def test_one_warp_gives_what_opencv_gives_for_rotation_about_the_centre():
    rows = parameters(1, rotation=20)
    angle = np.rad2deg(np.arctan2(rows.linear[0, 1, 0], rows.linear[0, 0, 0]))
    image = picture(3)
    centre = ((SIZE - 1) / 2, (SIZE - 1) / 2)
    expected = cv2.warpAffine(image, cv2.getRotationMatrix2D(centre, angle, 1), (SIZE, SIZE))
    assert np.abs(apply(rows, [image])[0].astype(int) - expected.astype(int)).mean() < 1
