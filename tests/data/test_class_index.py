"""The index of a set by class: of one label key, and sound."""

import json

import numpy as np
import pytest

from dist_train.data.class_index import build_class_index, load_class_index
from dist_train.data.reader import ImageSet
from dist_train.data.sources import open_manifest
from dist_train.errors import UserError
from tests.data.sets import encode, make_set, picture, write_tar


def test_another_label_key_makes_another_class_index(tmp_path):
    samples = []
    for number in range(12):
        record = json.dumps({"first": number % 2, "second": number % 3}).encode()
        samples.append([(f"{number}.jpg", encode(picture(number))), (f"{number}.json", record)])
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", samples)
    source = ImageSet(str(tmp_path / "set"), open_manifest(str(tmp_path / "set"), "second"))
    for key, classes in (("first", [6, 6, 0]), ("second", [4, 4, 4]), ("first", [6, 6, 0])):
        members, starts = load_class_index(build_class_index(source, key, tmp_path / "cache"))
        assert np.diff(starts).tolist() == classes
        assert members[: starts[1]].tolist() == list(range(0, 12, 12 // classes[0]))
    with pytest.raises(UserError, match=r"counts the classes of data\.label_key=second, not of first; remove it"):
        open_manifest(str(tmp_path / "set"), "first")


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04", b"\x80\x04N.", None])
def test_a_damaged_class_index_is_made_again(tmp_path, harm):
    manifest = make_set(tmp_path / "set", [12])
    source = ImageSet(str(tmp_path / "set"), manifest)
    directory = build_class_index(source, "label", tmp_path)
    members, starts = load_class_index(directory)
    expected = members.tolist(), starts.tolist()
    for name in ("members.npy", "starts.npy"):
        if harm is None:
            np.save(directory / name, np.array([5, 1 << 40]))
        else:
            (directory / name).write_bytes(harm)
        again = load_class_index(build_class_index(source, "label", tmp_path))
        assert tuple(each.tolist() for each in again) == expected
