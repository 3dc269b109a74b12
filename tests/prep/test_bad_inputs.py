"""Every kind of bad input through a whole job: kept as it should be, or in rejects.parquet with its reason."""

import io
import os
import struct
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.align_transform import Align
from data_prep.sources.archives import RecSource
from data_prep.transforms import Keep
from dist_train.data.manifest import load_manifest
from tests.prep.jobs import InProcess, options, rejects, run, samples
from tests.prep.recs import write_rec

SIDE = 64


def half(width: int = 96, height: int = 80) -> np.ndarray:
    """Left half white, right half black: where up is can be seen from a crop."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = 255
    return pixels


def encoded(image, kind, **more) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **more)
    return buffer.getvalue()


def turned_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is to be seen
    return encoded(np.ascontiguousarray(np.rot90(half())), "JPEG", exif=exif)


def png_bomb(side: int = 30_000) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_bomb(side: int = 30_000) -> bytes:
    data = bytearray(encoded(half(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


KEPT = {
    "cmyk.jpg": encoded(Image.fromarray(half()).convert("CMYK"), "JPEG"),
    "sixteen bits.png": cv2.imencode(".png", half().astype(np.uint16) * 257)[1].tobytes(),
    "animated.gif": encoded(half(), "GIF", save_all=True, append_images=[Image.fromarray(255 - half())]),
    "alpha.png": encoded(np.dstack([half(), np.full((80, 96), 255, np.uint8)]), "PNG"),
    "turned.jpg": turned_by_exif(),
    "grey.jpg": encoded(half()[..., 0], "JPEG"),
    "a line\nand 写真 Ž.jpg": encoded(half(98), "JPEG"),
}
REJECTED = {
    "zero.jpg": (b"", "empty", "0 bytes"),
    "text.jpg": (b"hello, this is no picture", "not a picture", "25 bytes that start with 68656c6c6f2c2074"),
    "cut.jpg": (encoded(half(97), "JPEG")[:-40], "truncated", "without an end: it is cut off"),
    "bomb.png": (png_bomb(), "too large", "30000x30000 pixels"),
    "bomb.jpg": (jpeg_bomb(), "too large", "30000x30000 pixels"),
    "the same.jpg": (KEPT["grey.jpg"], "duplicate", "same bytes as anna/grey.jpg"),
    "gone.jpg": (b"x", "vanished", "listed at planning, not there any more"),
}


class Vanishing(InProcess):
    """Removes a file between planning and the work."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def run(self, task, units):
        self.path.unlink(missing_ok=True)
        yield from super().run(task, units)


def test_every_bad_input_is_kept_upright_or_rejected_with_its_reason(tmp_path):
    folder = tmp_path / "photos" / "anna"
    folder.mkdir(parents=True)
    for name, data in {**KEPT, **{name: data for name, (data, *_) in REJECTED.items()}}.items():
        (folder / name).write_bytes(data)
    (folder / "thin.png").write_bytes(encoded(half(300, 1), "PNG"))
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "up").symlink_to(tmp_path / "photos")
    os.mkfifo(folder / "pipe.jpg")
    given = len(KEPT) + len(REJECTED) + 4
    align = Align(image_size=SIDE, no_face="centre")
    out = tmp_path / "out"
    run(out, options(tmp_path / "photos", align, unit_rows=5), Vanishing(folder / "gone.jpg"))
    found = rejects(out)
    for name, (_, reason, detail) in REJECTED.items():
        assert found[f"anna/{name}"][0] == reason, name
        assert detail in found[f"anna/{name}"][1], name
    assert {name: found[f"anna/{name}"][0] for name in ("loop", "up", "pipe.jpg")} == {
        "loop": "unreadable",
        "up": "not a file",
        "pipe.jpg": "not a file",
    }
    kept = samples(out)
    assert len(kept) == len(KEPT) + 1
    assert len(kept) + len(found) == given
    upright = 0
    for _, data in kept.values():
        crop = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert crop.shape == (SIDE, SIDE)
        upright += bool(crop[:, :20].mean() > 240 and crop[:, -20:].mean() < 15)
    assert upright >= len(KEPT)


@contextmanager
def nobody():
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_files_and_folders_are_rejected():
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        root = Path(name) / "photos"
        for person in ("a", "b"):
            (root / person).mkdir(parents=True)
            (root / person / "1.jpg").write_bytes(b"photo " + person.encode())
            (root / person / "2.jpg").write_bytes(b"more " + person.encode())
        (root / "a" / "1.jpg").chmod(0)
        (root / "b").chmod(0)
        (Path(name) / "out").mkdir()
        (Path(name) / "out").chmod(0o777)
        Path(name).chmod(0o755)
        try:
            with nobody():
                run(Path(name) / "out", options(root, min_images=1))
        finally:
            (root / "b").chmod(0o700)
        assert rejects(Path(name) / "out") == {
            "a/1.jpg": ("unreadable", "Permission denied"),
            "b": ("unreadable", "Permission denied"),
        }
        assert len(samples(Path(name) / "out")) == 1


@pytest.mark.parametrize("index", [True, False])
def test_a_rec_cut_in_the_middle_gives_what_is_whole_and_names_the_rest(tmp_path, index):
    pictures = [(float(number // 3), encoded(half(SIDE, SIDE) + np.uint8(number), "JPEG")) for number in range(12)]
    offsets = write_rec(tmp_path, pictures, index=index)
    rec = tmp_path / "train.rec"
    rec.write_bytes(rec.read_bytes()[: offsets[8] + 200])
    opts = options(tmp_path, Keep(image_size=SIDE), min_images=1, unit_rows=4)
    opts = opts.model_copy(update={"source": RecSource(path=rec)})
    run(tmp_path / "out", opts)
    found = rejects(tmp_path / "out")
    lost = range(8, 13) if index else [8]  # a scan cannot know of records behind the cut
    assert set(found) == {f"train.rec#{number}" for number in lost}
    assert {reason for reason, _ in found.values()} == {"damaged record"}
    assert f"record 8 at offset {offsets[8]}: it needs" in found["train.rec#8"][1]
    assert [data for _, (_, data) in sorted(samples(tmp_path / "out").items())] == [data for _, data in pictures[:7]]
    assert load_manifest(tmp_path / "out").num_classes == 3
