"""The index of a set by class: of one label key, and sound."""

import json

import numpy as np
import pytest

from dist_train.data.class_index import build_class_index, load_class_index
from dist_train.data.config import DataConfig
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.data.reader import ImageSet
from dist_train.data.remote import cache_policy
from dist_train.data.sources import open_manifest
from dist_train.errors import UserError, WorkError
from tests.data.sets import encode, make_set, picture, sample, write_tar
from tests.data.test_remote import Server


def policy(directory, **settings):
    return cache_policy(DataConfig(path="unused", cache_dir=str(directory), **settings))


def test_another_label_key_makes_another_class_index(tmp_path):
    samples = []
    for number in range(12):
        record = json.dumps({"first": number % 2, "second": number % 3}).encode()
        samples.append([(f"{number}.jpg", encode(picture(number))), (f"{number}.json", record)])
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", samples)
    source = ImageSet(str(tmp_path / "set"), open_manifest(str(tmp_path / "set"), "second"))
    for key, classes in (("first", [6, 6, 0]), ("second", [4, 4, 4]), ("first", [6, 6, 0])):
        members, starts = load_class_index(build_class_index(source, key, policy(tmp_path / "cache")))
        assert np.diff(starts).tolist() == classes
        assert members[: starts[1]].tolist() == list(range(0, 12, 12 // classes[0]))
    with pytest.raises(UserError, match=r"counts the classes of data\.label_key=second, not of first; remove it"):
        open_manifest(str(tmp_path / "set"), "first")


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04", b"\x80\x04N.", None])
def test_a_damaged_class_index_is_made_again(tmp_path, harm):
    manifest = make_set(tmp_path / "set", [12])
    source = ImageSet(str(tmp_path / "set"), manifest)
    directory = build_class_index(source, "label", policy(tmp_path))
    members, starts = load_class_index(directory)
    expected = members.tolist(), starts.tolist()
    for name in ("members.npy", "starts.npy"):
        if harm is None:
            np.save(directory / name, np.array([5, 1 << 40]))
        else:
            (directory / name).write_bytes(harm)
        again = load_class_index(build_class_index(source, "label", policy(tmp_path)))
        assert tuple(each.tolist() for each in again) == expected


def test_a_shard_that_cannot_be_read_now_is_not_left_out_for_ever(tmp_path, monkeypatch):
    source = ImageSet(str(tmp_path / "set"), make_set(tmp_path / "set", [6, 6]))
    shard = tmp_path / "set" / "x-000001.tar"
    shard.rename(tmp_path / "away.tar")
    with pytest.raises(WorkError, match=rf"{shard}: .*No such file or directory; .* bring the shard back"):
        build_class_index(source, "label", policy(tmp_path))
    (tmp_path / "away.tar").rename(shard)
    with monkeypatch.context() as patch:
        patch.setattr("os.pread", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(WorkError, match=r"Input/output error; .* bring the shard back"):
            build_class_index(source, "label", policy(tmp_path))
    members, starts = load_class_index(build_class_index(source, "label", policy(tmp_path)))
    assert (len(members), starts[0]) == (12, 0)


def test_samples_without_a_label_are_left_out_with_one_warning(tmp_path, caplog):
    samples = [sample(number, 0) for number in range(5)]
    samples[1][1], samples[3][1] = ("00000001.cls", b"x"), ("00000003.cls", b"9")
    (tmp_path / "set").mkdir()
    Manifest(32, 2, (write_tar(tmp_path / "set" / "a.tar", samples),)).save(tmp_path / "set")
    source = ImageSet(str(tmp_path / "set"), load_manifest(tmp_path / "set"))
    members, starts = load_class_index(build_class_index(source, "label", policy(tmp_path)))
    assert members[starts[0] :].tolist() == [0, 2, 4]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert "2 of 5 samples have no label that can be used and are left out, e.g. 00000001 in" in warned[0]


def test_shards_behind_an_address_go_to_the_cache_that_the_recipe_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    manifest = make_set(tmp_path / "set", [6, 6])
    with Server(tmp_path / "set") as server:
        build_class_index(ImageSet(server.url, manifest), "label", policy(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("*/*.tar"))) == 2
    assert not (tmp_path / "home").exists()
