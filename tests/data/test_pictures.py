"""Pictures before they are decoded: limits, and when they are whole, by one rule for all that decodes."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep import decode as photos
from data_prep.transforms import Keep
from dist_train.data import dali, picture_header
from dist_train.data.opencv import decode
from dist_train.data.reject import Reject
from dist_train.data.shards import BadSampleError, RawSample
from dist_train.errors import WorkError
from dist_train.evaluate.pictures import decoding
from launch.embed.crops import Centre
from tests.data.tars import drawn


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(side, bits=8):
    """A PNG that claims side x side pixels, in a few bytes."""
    head = struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def webp_bomb(kind):
    """A WebP of 16,383 x 16,383 pixels by the head of its first chunk."""
    body = {
        b"VP8L": b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + bytes(20),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(20),
        b"VP8X": bytes(4) + (16382).to_bytes(3, "little") * 2 + bytes(20),
    }[kind]
    body += bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def jpeg_bomb(side):
    data = bytearray(drawn(1))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def gif_bomb(side):
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x01\x44\0;"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + frame


def bmp_bomb(side):
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def many_scans(count):
    """A progressive JPEG whose last scan comes `count` times."""
    data = drawn(3, 2048, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


BOMBS = {
    "PNG": png_bomb(20_000),
    "PNG of 16 bits": png_bomb(12_000, bits=16),
    "JPEG": jpeg_bomb(60_000),
    "GIF": gif_bomb(60_000),
    "BMP": bmp_bomb(30_000),
    "WebP, lossless": webp_bomb(b"VP8L"),
    "WebP, lossy": webp_bomb(b"VP8 "),
    "WebP, extended": webp_bomb(b"VP8X"),
    "scans": many_scans(200),
}


@pytest.fixture
def no_decoder(monkeypatch):
    def never(*_):
        raise AssertionError("it was decoded")

    Image.init()  # imports what Pillow has not yet; one of its modules makes an image of its own
    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(Image.Image, "load", never)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded_by_training_evaluation_prep_and_embed(kind, no_decoder):
    data = BOMBS[kind]
    encoded = np.frombuffer(data, np.uint8)
    for backend in (decode, lambda picture: dali._prepare(RawSample("k", picture, 0, None), difficult=False)):
        with pytest.raises(BadSampleError, match=r"pixels, at most|scans, at most"):
            backend(encoded)
    with pytest.raises(WorkError, match=r"set, picture 0: .* at most"):
        decoding(lambda _: data, 112, "set")(0)
    found = photos.decode(data)
    assert isinstance(found, Reject)
    assert found.reason in ("too large", "damaged")
    (cut,) = Centre(112)([data])
    assert cut.reason in ("too large", "damaged")


def test_a_few_scans_are_no_bomb_and_neither_are_marks_behind_the_end():
    for data in (many_scans(1), drawn(1) + b"\xff\xda" * 1000):
        assert decode(np.frombuffer(data, np.uint8)).shape[2] == 3
        assert isinstance(photos.decode(data), photos.Photo)


class TestWhole:
    """A JPEG is whole if its end mark comes after its first scan began; what follows does not matter."""

    @pytest.mark.parametrize("trailer", [1000, 100_000])
    def test_bytes_behind_the_end_matter_nowhere(self, trailer):
        data = drawn(5) + bytes(trailer)
        encoded = np.frombuffer(data, np.uint8)
        assert decode(encoded).shape == (32, 32, 3)
        assert dali._prepare(RawSample("k", encoded, 0, None), difficult=False)[1] == 32
        assert decoding(lambda _: data, 32, "set")(0).shape == (32, 32, 3)
        assert isinstance(photos.decode(data), photos.Photo)
        assert Keep(image_size=32).open()([data])[0][0].data == data

    def test_one_cut_off_behind_its_preview_is_cut_off_everywhere(self):
        preview = b"Exif\0\0" + bytes(20) + drawn(7, 8)
        data = drawn(5)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + data[2:]
        assert isinstance(photos.decode(data), photos.Photo)
        data = data[:-3]
        encoded = np.frombuffer(data, np.uint8)
        for backend in (decode, lambda picture: dali._prepare(RawSample("k", picture, 0, None), difficult=False)):
            with pytest.raises(BadSampleError, match="without an end: it is cut off"):
                backend(encoded)
        with pytest.raises(WorkError, match="without an end"):
            decoding(lambda _: data, 32, "set")(0)
        assert photos.decode(data).reason == "truncated"
        assert Keep(image_size=32).open()([data])[0].reason == "truncated"


def test_heads_agree_with_pillow_on_every_kind_of_jpeg_png_and_webp():
    for kind, options in [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": b"Exif\0\0" + bytes(40)}), ("PNG", {}),
        ("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0" + bytes(40)}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        Image.new("RGB", (71, 53), (9, 80, 200)).save(buffer, kind, **options)
        head = picture_header.read_header(buffer.getvalue())
        assert (head.kind, head.width, head.height) == (kind, 71, 53)


def test_fill_bytes_and_stray_bytes_between_a_jpegs_segments_are_skipped_as_decoders_do():
    data = drawn(2)
    at = data.index(b"\xff\xdb")
    for extra in (b"\xff\xff\xff", b"\0\0\0\0\0"):
        changed = data[:at] + extra + data[at:]
        assert cv2.imdecode(np.frombuffer(changed, np.uint8), cv2.IMREAD_COLOR) is not None
        assert picture_header.read_header(changed)[1:3] == (32, 32)


def test_a_picture_longer_than_opencv_takes_is_a_reject_and_no_error():
    """OpenCV refuses a side above 2**20 by an exception, and warps no side above 2**15."""
    row = bytes(3 * 1_048_577 + 1)
    head = struct.pack("<IiiHHIIiiII", 40, 1, 1_048_577, 1, 24, 0, 0, 0, 0, 0, 0)
    bmp = b"BM" + struct.pack("<IHHI", 54 + len(row), 0, 0, 54) + head + bytes(4 * 1_048_577)
    assert photos.decode(bmp).reason == "too large"
    (cut,) = Centre(112)([bmp])
    assert cut.reason == "too large"
    with pytest.raises(BadSampleError, match="1x1048577 pixels, expected a square"):
        decode(np.frombuffer(bmp, np.uint8))
    with pytest.raises(WorkError):
        decoding(lambda _: bmp, 112, "set")(0)


def test_kinds_that_only_opencv_knows_are_refused_since_their_size_is_not_known_before():
    pgm = b"P5 30000 30000 255\n" + bytes(100)
    with pytest.raises(BadSampleError, match="expected JPEG, PNG or WebP"):
        decode(np.frombuffer(pgm, np.uint8))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_kinds_under_the_name_of_a_jpeg_are_still_taken(kind):
    assert decode(np.frombuffer(drawn(4, kind=kind), np.uint8)).shape == (32, 32, 3)


def test_a_picture_much_smaller_than_its_set_is_bad():
    encoded = np.frombuffer(drawn(1, 15), np.uint8)
    assert decode(encoded, set_px=60).shape == (15, 15, 3)
    with pytest.raises(BadSampleError, match="15x15 pixels, less than 1/4 of its set's 61x61"):
        decode(encoded, set_px=61)


def test_any_bytes_changed_give_a_picture_or_a_reason():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = drawn(3, kind=kind)
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 64), 3):
                broken[at] = rng.integers(256)
            with contextlib.suppress(BadSampleError):
                decode(np.frombuffer(bytes(broken[: rng.integers(1, len(data) + 1)]), np.uint8))


@pytest.mark.parametrize("kind", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("claimed", [1000, 0xF300_0000])
def test_a_png_with_a_chunk_longer_than_its_file_is_refused_before_memory_is_set_aside_for_it(claimed, kind):
    data = png_bomb(32)
    at = data.index(kind) - 4
    longer = data[:at] + struct.pack(">I", claimed) + data[at + 4 :]
    header = picture_header.read_header(longer)
    assert picture_header.cut_off(data, header) is None
    assert picture_header.cut_off(data + b"after the end", header) is None
    assert f"a chunk that claims {claimed:,}" in picture_header.cut_off(longer, header)
