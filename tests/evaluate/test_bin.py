import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dist_train.errors import UserError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.config import check_names, set_name

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


def test_sets_are_called_in_figures_as_the_recipe_tells_them_apart(tmp_path):
    paths = [write(tmp_path / name, (PICTURES, SAME), 4) for name in ("lfw.bin", "lfw.pkl", "lfw")]
    check_names(paths[:2])
    assert [read_bin(path).name for path in paths] == [set_name(path) for path in paths] == ["lfw", "lfw.pkl", "lfw"]
    with pytest.raises(UserError, match="are both called 'lfw' in figures"):
        check_names(paths)


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


@pytest.mark.parametrize("protocol", range(6))
def test_pictures_as_columns_of_bytes_are_read(tmp_path, protocol):
    columns = [np.frombuffer(data, dtype=np.uint8)[:, None] for data in PICTURES]
    assert read_bin(write(tmp_path / "columns.bin", (columns, SAME), protocol)).images == PICTURES


def test_a_picture_that_the_file_refers_to_often_is_there_once(tmp_path):
    for picture in (np.full((1 << 20, 1), 7, np.uint8), bytearray(1 << 20)):
        path = write(tmp_path / "again.bin", ([picture] * 2000, [True, False] * 500), 4)
        tracemalloc.start()
        found = read_bin(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found.images) == 2000
        assert peak < 10 << 20


def called(name, times=1):
    """A pickle that calls a name again and again with a mebibyte that it holds once."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    call = b"c" + name + b"\n" + b"h\x00X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02(" + text + b"q\x000" + call * times + b"l."


LENGTH = b"\x8a\x05" + (10**10).to_bytes(5, "little")
MULTIPLIED = {
    "bytes of a length": (
        b"\x80\x02cbuiltins\nbytes\n" + LENGTH + b"\x85R.",
        "bytes of int",
    ),
    "a bytearray of a length": (
        b"\x80\x02cbuiltins\nbytearray\n" + LENGTH + b"\x85R.",
        "bytes of int",
    ),
    "bytes of a length, made as an object": (
        b"\x80\x02cbuiltins\nbytes\n" + LENGTH + b"\x85\x81.",
        "not a readable",
    ),
    "text encoded four thousand times": (called(b"_codecs\nencode", 4000), "far larger than the file"),
    "bytes made four thousand times": (called(b"builtins\nbytearray", 4000), "far larger than the file"),
    "a memo entry of number 2^29": (b"K\x01p536870912\n.", "holds int"),
}


@pytest.mark.parametrize("name", MULTIPLIED)
def test_a_small_file_does_not_grow_in_memory(tmp_path, name):
    body, message = MULTIPLIED[name]
    (tmp_path / "bomb.bin").write_bytes(body)
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        read_bin(tmp_path / "bomb.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.timeout(10)
def test_labels_that_hold_one_another_are_refused_at_once(tmp_path):
    deep = [True]
    for _ in range(40):
        deep = [deep] * 2  # 2^40 entries for whoever spreads them out
    for same in ([deep, *SAME[1:]], [10**4000, *SAME[1:]]):
        with pytest.raises(UserError, match="n booleans"):
            read_bin(write(tmp_path / "deep.bin", (PICTURES, same), 4))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ARRAY, "expected two lists"),  # never given its bytes
        (
            b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)cnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtb",
            "expected two lists",
        ),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01N\x89NNtb", "shape is not a tuple"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path, array, message):
    (tmp_path / "half.bin").write_bytes(b"\x80\x02" + array + b"]\x86.")
    with pytest.raises(UserError, match=message):
        read_bin(tmp_path / "half.bin")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="not a file"):
            read_bin(Path(path))


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
