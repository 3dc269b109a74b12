"""DALI and OpenCV: the same order, the same parameters, nearly the same pixels. On the CPU here."""

import threading
import time

import numpy as np
import pytest
import torch

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest
from dist_train.errors import WorkError
from tests.data.sets import encode, make_set, picture, sample, write_tar
from tests.data.test_remote import Server

pytest.importorskip("nvidia.dali")

COLOUR = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "grey": 0.2}
CHANGES = [
    {"flip": 0},
    {"flip": 0.5},
    {"rotation": 10},
    {"crop": 0.6},
    COLOUR,
    {"low_resolution": 0.5},
    {"blur": 0.5},
    {"jpeg": 0.5},
    {"erase": 0.5},
    {"rotation": 10, "crop": 0.8, **COLOUR, "low_resolution": 0.2, "blur": 0.2, "jpeg": 0.2, "erase": 0.2},
]


def load(path, backend, device=None, steps=4, batch_size=10, **values):
    config = DataConfig.model_validate({"path": str(path), "workers": 0, "backend": backend} | values)
    with build_loader(config, batch_size, 0, 1, 3, device=device) as loader:
        batches = [next(loader) for _ in range(steps)]
        grey = torch.cat([batch.images.cpu() for batch in batches]).numpy() * 127.5 + 127.5
        return grey, torch.cat([batch.labels.cpu() for batch in batches]).tolist(), loader.bad_samples


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("set")
    make_set(directory, [15, 20], num_classes=35, size=112)
    return directory


@pytest.mark.parametrize("augment", CHANGES, ids=lambda augment: "+".join(augment))
def test_backends_agree_within_two_grey_levels(path, augment):
    expected, labels, _ = load(path, "opencv", augment=augment)
    found, found_labels, _ = load(path, "dali", augment=augment)
    assert found_labels == labels
    difference = np.abs(found - expected)
    assert difference.mean() < 2
    assert difference.mean(axis=(1, 2, 3)).max() < 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", CHANGES, ids=lambda augment: "+".join(augment))
def test_backends_agree_on_a_gpu(path, augment):
    expected, labels, _ = load(path, "opencv", augment=augment)
    found, found_labels, _ = load(path, "dali", torch.device("cuda"), augment=augment)
    assert found_labels == labels
    assert np.abs(found - expected).mean() < 2


def test_backends_agree_on_pictures_of_other_sizes(path):
    expected, _, _ = load(path, "opencv", image_size=64, augment={"rotation": 10})
    found, _, _ = load(path, "dali", image_size=64, augment={"rotation": 10})
    assert np.abs(found - expected).mean() < 2


def test_backends_agree_on_bad_samples_and_odd_pictures(tmp_path):
    jpeg = encode(picture(0))
    samples = [sample(n, n) for n in range(20)]
    samples[3] = [("3.jpg", jpeg[:300]), ("3.cls", b"3")]
    samples[5] = [("5.png", encode(picture(5), ".png")), ("5.cls", b"5")]
    samples[6] = [("6.webp", encode(picture(6), ".webp")), ("6.cls", b"6")]
    samples[7] = [("7.jpg", encode(picture(7)[:, :, :1])), ("7.cls", b"7")]
    samples[8] = [("8.jpg", encode(picture(8)[:20])), ("8.cls", b"8")]
    Manifest(32, 20, (write_tar(tmp_path / "x-000000.tar", samples),)).save(tmp_path)
    expected, labels, bad = load(tmp_path, "opencv", max_bad_fraction=1)
    found, found_labels, found_bad = load(tmp_path, "dali", max_bad_fraction=1)
    assert found_labels == labels
    assert (bad, found_bad) == (4, 4)
    assert np.abs(found - expected).mean() < 2


def test_a_batch_that_dali_fails_on_is_made_by_opencv(tmp_path, caplog):
    samples = [sample(n, n) for n in range(20)]
    broken = bytearray(encode(picture(3)))
    place = broken.index(b"\xff\xc4")  # a Huffman table: decoders refuse a picture without one
    broken[place + 2 : place + 40] = b"\xff" * 38
    samples[3] = [("3.jpg", bytes(broken)), ("3.cls", b"3")]
    Manifest(32, 20, (write_tar(tmp_path / "x-000000.tar", samples),)).save(tmp_path)
    expected, labels, bad = load(tmp_path, "opencv", max_bad_fraction=1, steps=6)
    found, found_labels, found_bad = load(tmp_path, "dali", max_bad_fraction=1, steps=6)
    assert "OpenCV makes it" in caplog.text
    assert found_labels == labels
    assert found_bad == bad == 3
    assert np.abs(found - expected).mean() < 2


def test_a_reader_that_hangs_is_an_error_after_the_time_limit(tmp_path, monkeypatch):
    make_set(tmp_path, [20])
    from dist_train.data import dali

    monkeypatch.setattr(dali.DaliProducer, "_gather", lambda self, first: __import__("time").sleep(3))
    with pytest.raises(WorkError, match=r"within data.timeout_s=0.5 s: waited .* for the thread that reads shards"):
        load(tmp_path, "dali", timeout_s=0.5, prefetch=1)


def test_closing_does_not_wait_for_a_server_that_fails(tmp_path, monkeypatch):
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"dist_train.data.remote.{name}", 3600.0)
    make_set(tmp_path / "set", [20])
    with Server(tmp_path / "set") as server:
        server.trouble = {"x-000000.tar": ["error"] * 10}
        config = DataConfig(path=server.url, cache_dir=str(tmp_path / "cache"), backend="dali")
        with build_loader(config, 10, 0, 1, 3):
            while not server.asked["x-000000.tar"]:
                time.sleep(0.01)
            threads = [thread for thread in threading.enumerate() if thread.name.startswith("shards")]
    for thread in threads:
        thread.join(60)
    assert all(thread.daemon and not thread.is_alive() for thread in threads)


def test_backends_agree_on_both_views(path):
    values = {"path": str(path), "workers": 0, "augment": CHANGES[-1]}
    found = []
    for backend in ("opencv", "dali"):
        config = DataConfig.model_validate(values | {"backend": backend})
        with build_loader(config, 10, 0, 1, 3, views=2) as loader:
            batches = [next(loader) for _ in range(3)]
        found.append([torch.cat(views) for views in zip(*((each.images, each.other) for each in batches), strict=True)])
    for expected, other in zip(*found, strict=True):
        difference = (expected - other).abs() * 127.5
        assert difference.mean() < 2
        assert difference.mean(dim=(1, 2, 3)).max() < 4
