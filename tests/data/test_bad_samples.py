"""Rotten files: replaced by the next sample in order, counted, written down; too many end the run."""

import errno
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_train.data.bad_samples import BadSample, BadSampleLog
from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest, Shard
from dist_train.data.opencv import decode
from dist_train.data.shards import BadSampleError
from dist_train.errors import WorkError
from tests.data.sets import encode, make_set, picture, sample, write_tar


def config(path, **values):
    defaults = {"path": str(path), "workers": 0, "backend": "opencv", "max_bad_fraction": 1, "check_at_start": False}
    return DataConfig.model_validate(defaults | values)


def take(values, steps=6, batch_size=4, rank=0, world_size=1, record=None):
    with build_loader(values, batch_size, rank, world_size, 3, bad_samples_path=record) as loader:
        batches = [next(loader) for _ in range(steps)]
        return np.stack([b.labels.numpy() for b in batches]), np.stack([b.images.numpy() for b in batches]), loader


def one_bad_each(directory):
    """Twelve samples, of which seven are bad in one way each; labels are unique."""
    jpeg = encode(picture(0))
    wide = cv2.imencode(".png", np.zeros((32, 40, 3), np.uint8))[1].tobytes()
    samples = [sample(n, n) for n in range(12)]
    samples[1] = [("1.jpg", jpeg[: len(jpeg) // 2]), ("1.cls", b"1")]
    samples[3] = [("3.jpg", b""), ("3.cls", b"3")]
    samples[4] = [("4.jpg", jpeg)]
    samples[6] = [("6.jpg", jpeg), ("6.cls", b"six")]
    samples[7] = [("7.jpg", b"no picture at all"), ("7.cls", b"7")]
    samples[9] = [("9.png", wide), ("9.cls", b"9")]
    samples[10] = [("10.jpg", jpeg), ("10.cls", b"12")]
    directory.mkdir()
    Manifest(32, 12, (write_tar(directory / "x-000000.tar", samples),)).save(directory)


def test_each_kind_of_bad_sample_is_replaced_and_written_down_with_its_reason(tmp_path):
    one_bad_each(tmp_path / "set")
    record = tmp_path / "bad_samples.jsonl"
    labels, _, loader = take(config(tmp_path / "set"), record=record)
    assert set(labels.ravel().tolist()) == {0, 2, 5, 8, 11}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert len(lines) == 7
    assert loader.bad_samples == 14
    assert {line["shard"] for line in lines} == {f"{tmp_path}/set/x-000000.tar"}
    assert "cut off" in reasons["1"]
    assert "empty" in reasons["3"]
    assert "neither .cls nor .json" in reasons["4"]
    assert "b'six'" in reasons["6"]
    assert "cannot be decoded" in reasons["7"]
    assert "40x32 pixels" in reasons["9"]
    assert "label 12, but the set has 12 classes" in reasons["10"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_replacements_are_the_same_on_every_number_of_ranks(tmp_path, world_size):
    one_bad_each(tmp_path / "set")
    values = config(tmp_path / "set")
    labels, images, _ = take(values, batch_size=6)
    parts = [take(values, batch_size=6 // world_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert np.array_equal(np.concatenate([part[0] for part in parts], axis=1), labels)
    assert np.array_equal(np.concatenate([part[1] for part in parts], axis=1), images)


def test_workers_report_bad_samples_too(tmp_path):
    one_bad_each(tmp_path / "set")
    labels, images, _ = take(config(tmp_path / "set"))
    record = tmp_path / "bad_samples.jsonl"
    helped, shown, loader = take(config(tmp_path / "set", workers=2), record=record)
    assert np.array_equal(helped, labels)
    assert np.array_equal(shown, images)
    assert loader.bad_samples == 14
    assert len(record.read_text().splitlines()) == 7


def test_too_many_bad_samples_end_the_run_with_their_list(tmp_path):
    one_bad_each(tmp_path / "set")
    with pytest.raises(WorkError, match=r"(?s)bad samples among.*max_bad_fraction=0.3.*x-000000.tar, sample"):
        take(config(tmp_path / "set", max_bad_fraction=0.3))
    assert len(take(config(tmp_path / "set", max_bad_fraction=0.8))[0]) == 6


def test_nothing_but_bad_samples_is_an_end_and_not_a_search_for_ever(tmp_path):
    shard = write_tar(tmp_path / "x-000000.tar", [[(f"{n}.jpg", b"?"), (f"{n}.cls", b"0")] for n in range(5)])
    Manifest(32, 1, (shard,)).save(tmp_path)
    with pytest.raises(WorkError, match="bad samples in a row from position 0"):
        take(config(tmp_path), batch_size=2)


def test_few_samples_are_not_yet_a_fraction():
    log = BadSampleLog(None, 0.01, per_epoch=10**6)
    bad = [BadSample(n, "x.tar", str(n), "rotten") for n in range(11)]
    log.add(50, bad[:10])
    with pytest.raises(WorkError, match="11 bad samples among the first 51"):
        log.add(1, bad[10:])


@pytest.mark.parametrize("damage", ["cut", "gone", "longer", "shuffled", "index cut", "index of another"])
def test_a_damaged_shard_costs_its_samples_and_not_the_run(tmp_path, damage):
    make_set(tmp_path, [8, 8, 8], num_classes=24)
    tar = tmp_path / "x-000001.tar"
    index = tar.with_suffix(".idx")
    data = tar.read_bytes()
    if damage == "cut":
        tar.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        tar.unlink()
    elif damage == "longer":
        tar.write_bytes(data + bytes(512))
    elif damage == "shuffled":
        half = len(data) // 1024 * 512
        tar.write_bytes(data[half:] + data[:half])
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:-100])
    else:
        index.write_bytes((tmp_path / "x-000000.idx").read_bytes())
    labels, _, loader = take(config(tmp_path))
    assert {int(label) // 8 for label in labels.ravel()} == {0, 2}
    assert loader.bad_samples == 8
    with pytest.raises(WorkError, match=r"x-000001"):
        take(config(tmp_path, max_bad_fraction=0.2))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound")
    make_set(directory, [6, 6], num_classes=12, size=16)
    return directory


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=400))
def test_a_tar_with_any_bytes_changed_never_breaks_the_loader(sound, tmp_path, noise):
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tar = tmp_path / "x-000000.tar"
    data = bytearray(tar.read_bytes())
    for place, value in noise:
        data[place % len(data)] = value
    tar.write_bytes(data)
    labels, _, _ = take(config(tmp_path), steps=3)
    assert labels.min() >= 0
    assert labels.max() < 12


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="v1.2 0123456789\njpgcls/-", max_size=300))
def test_an_index_of_any_text_never_breaks_the_loader(sound, tmp_path, text):
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "x-000000.idx").write_text("v1.2 6\n" + "\n".join(text.splitlines()[:6]))
    labels, _, _ = take(config(tmp_path), steps=3)
    assert labels.max() < 12


def test_grey_16_bit_and_transparent_pictures_are_converted():
    colour = picture(3)
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    deep = colour[:, :, ::-1].astype(np.uint16) * 257
    clear = np.dstack([colour[:, :, ::-1], np.full((32, 32), 128, np.uint8)])
    for stored, expected in [(grey, np.dstack([grey] * 3)), (deep, colour[:, :, ::-1]), (clear, colour[:, :, ::-1])]:
        found = decode(np.frombuffer(cv2.imencode(".png", stored)[1].tobytes(), np.uint8))
        assert found.shape == (32, 32, 3)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_a_picture_cut_off_anywhere_is_bad(extension):
    data = encode(picture(1), extension)
    assert decode(np.frombuffer(data, np.uint8)).shape == (32, 32, 3)
    for length in (1, 10, len(data) // 3, len(data) - 20):
        with pytest.raises(BadSampleError):
            decode(np.frombuffer(data[:length], np.uint8))


def test_a_shard_with_another_count_than_the_manifest_is_named(tmp_path):
    manifest = make_set(tmp_path, [4, 4])
    first, second = manifest.shards
    wrong = Shard(second.name, 5, second.bytes, second.sha256)
    Manifest(32, 5, (first, wrong)).save(tmp_path)
    with pytest.raises(WorkError, match=r"x-000001.idx: 4 samples, the manifest says 5"):
        take(config(tmp_path, max_bad_fraction=0))


def test_a_disk_that_refuses_the_list_costs_lines_and_not_the_run(tmp_path, monkeypatch, caplog):
    record = tmp_path / "bad_samples.jsonl"
    log = BadSampleLog(record, 1, per_epoch=10)
    bad = [BadSample(n, "x.tar", str(n), "rotten") for n in range(4)]
    log.add(1, bad[:1])
    with record.open("a") as file:
        file.write('{"shard": "x.t')  # as much as the disk still took
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, "open", full)
        log.add(2, bad[1:3])
    log.add(1, bad[3:])
    assert log.count == 4
    assert caplog.text.count("BAD SAMPLES ARE NOT WRITTEN DOWN") == 1
    whole = [line for line in record.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["key"] for line in whole] == ["0", "3"]
