"""Encoded pictures as training, preparation and evaluation decode them."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.decode import decode as decode_photo
from data_prep.transforms import Keep
from dist_train.data.opencv import decode
from dist_train.data.reject import Reject
from dist_train.evaluate.pictures import decoding
from tests.data.sets import picture
from tests.fuzz.formats import PICTURE
from tests.fuzz.reader import Reader, RefusedError, Scene

SIDE_PX = 32


@lru_cache
def scenes() -> list[Scene]:
    """The same picture in the forms that are met."""
    colour = Image.fromarray(picture(7, SIDE_PX))
    grey, wide = colour.convert("L"), Image.fromarray(np.asarray(colour.convert("L"), np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = [
        (colour, "JPEG", {"quality": 90}),
        (colour, "JPEG", {"quality": 90, "progressive": True}),
        (grey, "JPEG", {"exif": exif}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {}),
        (colour.convert("RGBA"), "PNG", {}),
        (colour.convert("P"), "PNG", {}),
        (wide, "PNG", {}),
        (colour, "GIF", {"save_all": True, "append_images": [colour.rotate(90)]}),
        (colour, "WEBP", {}),
        (colour, "WEBP", {"lossless": True}),
        (colour.convert("RGBA"), "WEBP", {"save_all": True, "append_images": [colour.convert("RGBA")]}),
        (colour, "BMP", {}),
        (colour.convert("P"), "BMP", {}),
        (colour, "TIFF", {}),
        (wide, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "TIFF", {"compression": "jpeg"}),
    ]
    found = []
    for image, kind, options in forms:
        sink = io.BytesIO()
        image.save(sink, kind, **options)
        found.append(Scene({"picture": sink.getvalue()}, "picture"))
    return found


def _bytes(home: Path) -> bytes:
    return (home / "picture").read_bytes()


def _train(home: Path) -> None:
    decode(np.frombuffer(_bytes(home), np.uint8))


def _prepare(home: Path) -> None:
    for least in (None, 8):
        photo = decode_photo(_bytes(home), least)
        if isinstance(photo, Reject):
            raise RefusedError(str(photo))


def _keep(home: Path) -> None:
    (made,) = Keep(image_size=SIDE_PX).open()([_bytes(home)])
    if isinstance(made, Reject):
        raise RefusedError(str(made))


def _evaluate(home: Path) -> None:
    decoding(lambda _: _bytes(home), SIDE_PX, "picture")(0)


READERS = (
    Reader("picture: training", scenes, _train, PICTURE, weight=2),
    Reader("picture: prep", scenes, _prepare, PICTURE, weight=2),
    Reader("picture: keep", lambda: [*scenes()[:3], *scenes()[4:8]], _keep, PICTURE),
    Reader("picture: evaluation", scenes, _evaluate, PICTURE, weight=2),
)
