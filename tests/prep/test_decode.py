import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.decode import Photo, decode
from dist_train.data.reject import Reject

RNG = np.random.default_rng(0)


def smooth(height=120, width=160):
    """A picture without fine detail, so that JPEG changes it little."""
    return cv2.resize(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data, **options):
    photo = decode(data, **options)
    assert isinstance(photo, Photo), photo
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape[2] == 3
    return photo.pixels


def near(a, b, mean=3.0):
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < mean


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "MPO"])
def test_the_usual_formats_come_out_as_rgb(kind):
    picture = smooth()
    assert near(pixels(encoded(picture, kind)), picture)


def test_grey_pictures_get_three_equal_channels():
    grey = smooth()[..., 0]
    for kind in ("JPEG", "PNG"):
        out = pixels(encoded(grey, kind))
        assert near(out, np.repeat(grey[..., None], 3, 2))


def test_cmyk_is_converted():
    picture = smooth()
    assert near(pixels(encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)), picture, mean=6)


def test_alpha_lies_over_black():
    picture = np.dstack([smooth(), np.full((120, 160), 255, np.uint8)])
    picture[:60, :, 3] = 0
    out = pixels(encoded(picture, "PNG"))
    assert not out[:60].any()
    assert np.array_equal(out[60:], picture[60:, :, :3])


def test_a_palette_with_a_transparent_colour_lies_over_black():
    image = Image.fromarray(smooth()).quantize(16)
    index = image.getpixel((5, 5))
    out = pixels(encoded(image, "PNG", transparency=index))
    assert not out[np.asarray(image) == index].any()
    assert out.any()


def test_sixteen_bits_keep_their_range():
    ramp = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (40, 1))
    out = pixels(encoded(ramp, "PNG"))
    assert np.abs(out[..., 0] - ramp / 65535 * 255).max() <= 1
    color = np.stack([ramp, ramp[:, ::-1], ramp], 2)
    data = cv2.imencode(".png", color[..., ::-1])[1].tobytes()
    assert np.abs(pixels(data) - color / 65535 * 255).max() <= 1


def test_the_first_picture_of_an_animation_counts():
    frames = [Image.fromarray(smooth()) for _ in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert near(pixels(data), np.asarray(frames[0].quantize(256).convert("RGB")), mean=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind, orientation):
    upright = smooth()
    turned = {
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turned[orientation](upright))
    assert near(pixels(encoded(stored, kind, exif=exif)), upright)


def test_a_rotated_jpeg_is_upright_at_reduced_size_too():
    upright = smooth(240, 320)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = decode(encoded(np.ascontiguousarray(np.rot90(upright)), exif=exif), least_side_px=80)
    assert photo.shrink == 4
    assert near(photo.pixels, cv2.resize(upright, (80, 60), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(("least", "shrink"), [(None, 1), (161, 1), (160, 2), (81, 2), (80, 4), (40, 8), (1, 8)])
def test_a_jpeg_shrinks_as_far_as_its_longer_side_allows(least, shrink):
    photo = decode(encoded(smooth(240, 320)), least_side_px=least)
    assert (photo.shrink, photo.pixels.shape) == (shrink, (240 // shrink, 320 // shrink, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_thin_pictures_are_decoded(shape):
    picture = RNG.integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(pixels(encoded(picture, "PNG")), picture)
    assert pixels(encoded(picture), least_side_px=1).shape[2] == 3


def reason(data, **options):
    outcome = decode(data, **options)
    assert isinstance(outcome, Reject), "decoded"
    return outcome.reason


def test_what_is_no_picture_is_said_to_be_none():
    assert reason(b"") == "empty"
    for data in (b"\xff", b"hello, world", b"<svg/>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(4096)):
        assert reason(data) == "not a picture", data


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PPM", "PDF"])
def test_kinds_that_run_programs_or_decode_while_they_open_are_no_pictures(kind):
    assert reason(encoded(smooth(), kind)) == "not a picture"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP"])
def test_a_truncated_picture_is_rejected(kind, share):
    data = encoded(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8), kind)
    assert reason(data[: int(len(data) * share)]) in ("truncated", "damaged", "not a picture")


def test_a_truncated_jpeg_is_recognised_behind_its_preview():
    exif = b"Exif\0\0" + b"\0" * 20 + encoded(smooth(8, 8))  # a preview has an end mark of its own
    data = encoded(smooth())
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert isinstance(decode(data), Photo)
    assert reason(data[:-200]) == "truncated"


def test_bytes_behind_a_jpeg_do_not_matter():
    picture = smooth()
    assert near(pixels(encoded(picture, quality=95) + RNG.bytes(9000)), picture)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("side", [13_000, 30_000, 2_000_000])
def test_a_pixel_bomb_is_rejected_before_it_is_decoded(side):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    assert reason(data) == "too large"


def test_the_limit_of_pixels_is_an_option():
    data = encoded(smooth(100, 100))
    assert reason(data, max_pixels=9_999) == "too large"
    assert isinstance(decode(data, max_pixels=10_000), Photo)


def test_bits_turned_over_never_raise():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        data = encoded(smooth(), kind)
        for _ in range(40):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 6):
                broken[at] = rng.integers(256)
            assert isinstance(decode(bytes(broken)), Photo | Reject)
