import os
import pickle
import pickletools

import numpy as np
import pytest

from dist_train.errors import UserError
from dist_train.evaluate.bin import read_bin

PICTURES = [bytes([i] * 5) + b"\xff\xd8\x80" for i in range(8)]
SAME = [True, False, True, False]


def write(path, body, protocol):
    path.write_bytes(pickle.dumps(body, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_files_of_every_pickle_protocol_give_the_same_set(tmp_path, protocol):
    found = read_bin(write(tmp_path / "lfw.bin", (PICTURES, SAME), protocol))
    assert found.name == "lfw"
    assert found.images == PICTURES
    assert found.same.tolist() == SAME


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_pictures_and_labels_are_read_without_numpy_being_called(tmp_path, protocol):
    pictures = [np.frombuffer(data, dtype=np.uint8) for data in PICTURES]
    for same in (np.array(SAME), [np.bool_(flag) for flag in SAME], np.array(SAME, dtype=np.int64)):
        found = read_bin(write(tmp_path / "a.bin", (pictures, same), protocol))
        assert found.images == PICTURES
        assert found.same.tolist() == SAME


def test_a_file_written_by_python_2_is_read(tmp_path):
    # Python 2 writes its byte strings as (SHORT_)BINSTRING, and booleans in protocol 2 as NEWTRUE and NEWFALSE.
    strings = b"".join(b"U" + bytes([len(p)]) + p for p in PICTURES)
    body = b"\x80\x02](" + strings + b"e](" + b"".join(b"\x88" if s else b"\x89" for s in SAME) + b"e\x86."
    pickletools.dis(body, out=open(os.devnull, "w"))  # noqa: SIM115
    (tmp_path / "py2.bin").write_bytes(body)
    assert read_bin(tmp_path / "py2.bin").images == PICTURES


def test_old_numpy_module_names_are_understood(tmp_path):
    data = pickle.dumps(([np.frombuffer(p, dtype=np.uint8) for p in PICTURES], SAME), protocol=2)
    assert b"numpy._core.multiarray" in data
    (tmp_path / "old.bin").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_bin(tmp_path / "old.bin").images == PICTURES


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_code_is_refused_by_name_and_nothing_runs(tmp_path, protocol):
    path = write(tmp_path / "evil.bin", (PICTURES, [Attack(tmp_path / "harm")]), protocol)
    with pytest.raises(UserError, match=r"evil\.bin: its pickle calls posix\.mkdir, .* refused"):
        read_bin(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "name", [b"numpy\nload", b"numpy\nfromfile", b"builtins\neval", b"numpy.core.multiarray\nscalar.x"]
)
def test_even_functions_of_numpy_and_builtins_are_refused(tmp_path, name):
    (tmp_path / "evil.bin").write_bytes(b"c" + name + b"\n(S'x'\ntR.")
    with pytest.raises(UserError, match="refused"):
        read_bin(tmp_path / "evil.bin")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((PICTURES[:7], SAME), "7 pictures for 4 pairs, expected 8"),
        ((PICTURES, SAME[:3]), "8 pictures for 3 pairs, expected 6"),
        (([], []), "is empty"),
        ((PICTURES,), r"expected \(pictures, same\)"),
        ({"a": 1}, "holds dict"),
        ((3, SAME), "expected two lists"),
        (([*PICTURES[:7], 3.0], SAME), "picture 7 is float, expected an encoded picture"),
        (([*PICTURES[:7], np.zeros((2, 2, 3), np.uint8)], SAME), r"picture 7 is ndarray uint8 \[2, 2, 3\]"),
        (([*PICTURES[:7], np.zeros(3, np.float32)], SAME), "an array of dtype 'f4'; expected uint8 or bool"),
        ((PICTURES, [0, 1, 2, 0]), "must hold n booleans"),
    ],
)
def test_a_set_of_another_form_is_refused_with_what_was_found(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        read_bin(write(tmp_path / "odd.bin", body, 4))


def test_a_cut_file_and_a_missing_file_are_said_to_be_so(tmp_path):
    data = pickle.dumps((PICTURES, SAME), protocol=4)
    for length in (0, 1, 20, len(data) - 1):
        (tmp_path / "cut.bin").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.bin: not a readable \.bin"):
            read_bin(tmp_path / "cut.bin")
    with pytest.raises(UserError, match="cut off"):
        read_bin(tmp_path / "cut.bin")
    with pytest.raises(UserError, match="No such file"):
        read_bin(tmp_path / "none.bin")
