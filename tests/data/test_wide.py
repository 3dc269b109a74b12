"""Pictures decoded to four channels: the pixels of the plain decoder, whatever the picture."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dist_train.data import wide
from dist_train.data.opencv import decode
from dist_train.data.shards import BadSampleError
from dist_train.data.wide import WideDecoder
from tests.data.sets import picture

SIZE = 48


def encoded(kind="JPEG", mode="RGB", size=SIZE, **options):
    sink = io.BytesIO()
    Image.fromarray(picture(3, size)).convert(mode).save(sink, kind, **options)
    return np.frombuffer(sink.getvalue(), np.uint8)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif)


KINDS = {
    "4:2:0": encoded(quality=90),
    "4:4:4": encoded(quality=90, subsampling=0),
    "4:2:2, progressive": encoded(subsampling=1, progressive=True),
    "low quality": encoded(quality=5),
    "turned by EXIF": turned(),
    "grey": encoded(mode="L"),
    "CMYK": encoded(mode="CMYK"),
    "stored red, green, blue": encoded(keep_rgb=True),
    "PNG": encoded("PNG"),
    "WebP": encoded("WEBP"),
    "smaller": encoded(size=SIZE // 2),
    "larger": encoded(size=SIZE * 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_the_plain_decoder(kind):
    found = WideDecoder(SIZE)(KINDS[kind], SIZE)
    assert found.shape[2] == 4
    assert np.array_equal(found[:, :, :3], decode(KINDS[kind], SIZE))


def test_usual_jpegs_take_the_short_way_and_leave_no_copy(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    decoder = WideDecoder(SIZE)
    assert decoder(KINDS["4:2:0"]) is decoder(KINDS["4:4:4"])


def test_damaged_scans_give_the_same_pixels_or_the_same_reason():
    random = np.random.default_rng(2)
    wrong = 0
    for number in range(300):
        broken = KINDS[("4:2:0", "4:4:4", "4:2:2, progressive")[number % 3]].copy()
        start = 2 if number % 2 else len(broken) // 2
        broken[random.integers(start, len(broken) - 2, 3)] = random.integers(256, size=3)
        expected, found = outcome(decode, broken), outcome(WideDecoder(SIZE), broken)
        assert expected == found, number
        wrong += isinstance(expected, str)
    assert 0 < wrong < 300


def outcome(decoder, data):
    """Shape and pixels, or the reason."""
    try:
        found = decoder(data, SIZE)
    except BadSampleError as error:
        return str(error)
    return found.shape[:2], found[:, :, :3].tobytes()


def test_opencv_decodes_where_the_library_is_not_there(monkeypatch):
    monkeypatch.setattr(wide, "simplejpeg", None)
    assert np.array_equal(WideDecoder(SIZE)(KINDS["4:4:4"])[:, :, :3], decode(KINDS["4:4:4"]))
