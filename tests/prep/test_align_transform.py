import io

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_prep import align_transform, searched
from data_prep.align_transform import Align
from data_prep.decode import decode
from data_prep.job.plan import JobOptions, restore_options
from data_prep.searched import in_groups
from data_prep.sources.folder import FolderSource
from dist_train.data.alignment import TEMPLATE_112
from dist_train.data.reject import Reject
from tests.prep.test_mtcnn import PORTRAIT, crowd, portrait


def png(picture):
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def pixels(crop):
    return decode(crop.data).pixels


def made_of(options, *photos):
    return options.open()(photos)


def test_a_photo_becomes_an_aligned_crop_with_its_record():
    ((crop,),) = made_of(Align(), PORTRAIT.read_bytes())
    assert pixels(crop).shape == (112, 112, 3)
    assert crop.extension == "jpg"
    left, top, right, bottom = crop.record["box"]
    assert 0 < left < right < 512
    assert 0 < top < bottom < 600
    assert crop.face_px == pytest.approx(max(right - left, bottom - top), abs=0.02)
    assert crop.score == pytest.approx(crop.record["score"], abs=1e-5)
    assert np.shape(crop.record["landmarks"]) == (5, 2)
    ((again,),) = made_of(Align(image_size=448), png(cv2.resize(pixels(crop), (448, 448))))
    assert np.abs(np.array(again.record["landmarks"]) / 4 - TEMPLATE_112).max() < 8  # eyes and mouth lie as they should


def test_photos_of_a_batch_get_what_they_get_alone():
    photos = [PORTRAIT.read_bytes(), b"no photo", png(crowd()), png(np.zeros((80, 90, 3), np.uint8)), b""]
    options = Align(faces="all")
    together = made_of(options, *photos)
    alone = [made_of(options, photo)[0] for photo in photos]
    assert [type(made) for made in together] == [list, Reject, list, Reject, Reject]
    assert [made.reason for made in together if isinstance(made, Reject)] == ["not a picture", "no face", "empty"]
    for a, b in zip(together, alone, strict=True):
        if isinstance(a, Reject):
            assert a == b
            continue
        assert len(a) == len(b)
        for crop, other in zip(a, b, strict=True):
            assert np.allclose(crop.record["box"], other.record["box"], atol=0.02)
            assert np.abs(pixels(crop).astype(int) - pixels(other)).mean() < 0.1


def test_photos_are_held_by_their_pixels_not_by_their_number(monkeypatch):
    photos = [png(portrait(0.2 + 0.05 * n)) for n in range(6)]
    expected = made_of(Align(), *photos)
    together, search = [], align_transform._Aligner._detect
    monkeypatch.setattr(searched, "DECODED_PX", 30_000)
    monkeypatch.setattr(
        align_transform._Aligner, "_detect", lambda self, photos: together.append(photos) or search(self, photos)
    )
    assert [len(made) for made in made_of(Align(), *photos)] == [len(made) for made in expected]
    assert len(together) > 1
    for held in together:
        assert sum(photo.size // 3 for photo in held[:-1]) < 30_000, "the last one filled them"


@pytest.mark.parametrize(
    ("most", "groups"), [(None, [[1, 29, 5], [40], [3, 3, 3]]), (2, [[1, 29], [5, 40], [3, 3], [3]])]
)
def test_groups_end_at_a_number_of_pixels_or_of_items(monkeypatch, most, groups):
    monkeypatch.setattr(searched, "DECODED_PX", 31)
    assert list(in_groups([1, 29, 5, 40, 3, 3, 3], int, most)) == groups
    assert list(in_groups([], int)) == []


def test_all_faces_come_with_the_surest_first():
    (crops,) = made_of(Align(faces="all"), png(crowd()))
    assert len(crops) >= 10
    scores = [crop.score for crop in crops]
    assert scores == sorted(scores, reverse=True)


def street():
    """A portrait in the middle, and a larger face at the right border."""
    small, large = portrait(0.3), portrait(0.42)
    photo = np.full((260, 500, 3), 128, np.uint8)
    photo[40 : 40 + len(small), 170 : 170 + small.shape[1]] = small
    photo[: len(large), 500 - large.shape[1] :] = large[: len(photo)]
    return photo


def test_the_default_is_the_main_face_and_its_record_names_the_runner_up():
    assert Align().faces == "main"
    ((main,), (largest,)) = (made_of(Align(**rule), png(street()))[0] for rule in ({}, {"faces": "largest"}))
    assert main.face_px < 0.9 * largest.face_px
    assert (main.record["faces"], largest.record["faces"]) == (2, 2)
    assert main.record["runner_up"] == largest.record["box"]
    assert largest.record["runner_up"] == main.record["box"]
    assert main.lead == pytest.approx(main.record["lead"], abs=1e-4)
    assert main.record["lead"] > largest.record["lead"] > 0
    assert np.array_equal(main.found.boxes[main.taken].round(2), np.float32(main.record["box"]))
    ((alone,),) = made_of(Align(), PORTRAIT.read_bytes())
    assert (alone.record["faces"], alone.lead) == (1, None)
    assert not {"lead", "runner_up"} & alone.record.keys()
    (crops,) = made_of(Align(faces="all"), png(street()))
    assert [(crop.record["faces"], crop.lead) for crop in crops] == [(2, None)] * 2


def test_the_largest_face_is_chosen():
    (crops,) = made_of(Align(faces="all"), png(crowd()))
    ((largest,),) = made_of(Align(faces="largest"), png(crowd()))
    assert largest.record["box"] in [crop.record["box"] for crop in crops]
    assert largest.face_px >= 0.95 * max(crop.face_px for crop in crops)


def test_without_a_face_the_centre_is_cropped_on_demand():
    photo = np.zeros((60, 100, 3), np.uint8)
    photo[:, 20:80] = 200
    ((crop,),) = made_of(Align(no_face="centre", image_size=30), png(photo))
    assert (crop.record, crop.score, crop.face_px) == ({}, None, None)
    assert pixels(crop).min() > 195


def test_crops_can_follow_the_box():
    ((crop,),) = made_of(Align(crop="box", margin=0.0), PORTRAIT.read_bytes())
    left, top, right, bottom = (round(side) for side in crop.record["box"])
    side, middle = max(right - left, bottom - top), (left + right) // 2
    photo = portrait()[top:bottom, middle - side // 2 : middle + side // 2]
    expected = cv2.resize(photo, (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels(crop).astype(int) - expected).mean() < 8


def test_large_photos_are_searched_small_and_cut_from_what_was_decoded():
    large = cv2.resize(portrait(), None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC)
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, "JPEG", quality=90)
    options = Align(longer_side_px=600, min_face_px=60)
    assert decode(buffer.getvalue(), options.open()._least_side_px).shrink == 2
    ((crop,),) = made_of(options, buffer.getvalue())
    ((small,),) = made_of(Align(min_face_px=60), PORTRAIT.read_bytes())
    assert np.allclose(np.array(crop.record["landmarks"]) / 5, small.record["landmarks"], atol=4)
    assert crop.face_px == pytest.approx(5 * small.face_px, rel=0.05)


def test_all_that_is_told_of_a_face_is_in_pixels_of_the_whole_photo():
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(street(), None, fx=5, fy=5)).save(buffer, "JPEG", quality=95)
    ((crop,),) = made_of(Align(longer_side_px=500, min_face_px=40), buffer.getvalue())
    ((small,),) = made_of(Align(min_face_px=40), png(street()))
    for name in ("box", "runner_up", "landmarks"):
        assert np.allclose(np.array(crop.record[name]) / 5, small.record[name], atol=6), name  # of 78 px wide faces
    assert np.allclose(crop.found.boxes[crop.taken], crop.record["box"], atol=0.01)
    assert crop.lead == pytest.approx(small.lead, rel=0.2)


def test_exif_rotation_comes_before_detection():
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(portrait(), -1))).save(buffer, "JPEG", quality=95, exif=exif)
    ((turned,),) = made_of(Align(), buffer.getvalue())
    ((upright,),) = made_of(Align(), PORTRAIT.read_bytes())
    assert np.allclose(turned.record["box"], upright.record["box"], atol=6)


def test_the_same_photos_give_the_same_bytes():
    photos = [PORTRAIT.read_bytes(), png(crowd())]
    options = Align(faces="all")
    once, again = (
        [[(crop.data, crop.record, crop.lead) for crop in crops] for crops in made_of(options, *photos)]
        for _ in range(2)
    )
    assert once == again


def test_options_survive_the_plan(tmp_path):
    options = JobOptions(source=FolderSource(path=tmp_path), transform=Align(faces="all", longer_side_px=640))
    assert restore_options(options.described()) == options


@pytest.mark.parametrize("wrong", [{"min_face_px": 5}, {"faces": "smallest"}, {"margin": -1}, {"quality": 90}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Align(**wrong)
