import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_train.data import pair_list, text_file
from dist_train.data.pair_list import Columns, Pair, read_pairs
from dist_train.errors import UserError

SAME, OTHER = ["Ann\t1\t4", "Bo van Ek\t10\t2"], ["Ann\t1\tCy\t1234", "Bo van Ek\t3\tAnn\t2"]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lfws_lists_are_read_with_folds_and_without(tmp_path):
    whole = read_pairs(write(tmp_path / "pairsDevTest.txt", "2", *SAME, *OTHER))
    assert whole == [  # in turn: folds cut by position would have one kind alone
        Pair("Ann/Ann_0001", "Ann/Ann_0004", True),
        Pair("Ann/Ann_0001", "Cy/Cy_1234", False),
        Pair("Bo van Ek/Bo van Ek_0010", "Bo van Ek/Bo van Ek_0002", True),
        Pair("Bo van Ek/Bo van Ek_0003", "Ann/Ann_0002", False),
    ]
    folds = read_pairs(write(tmp_path / "pairs.txt", "2\t1", SAME[0], OTHER[0], SAME[1], OTHER[1]))
    assert folds == whole
    (tmp_path / "dos.txt").write_bytes("\r\n".join(["\ufeff2", *SAME, *OTHER, "", ""]).encode())
    assert read_pairs(tmp_path / "dos.txt") == whole


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["2", *SAME, *OTHER[:1]], r"its head '2' stands for 4 pairs, 3 lines follow; the file is cut off"),
        (["2\t2", *SAME, *OTHER], r"its head '2\\t2' stands for 8 pairs, 4 lines follow"),
        (
            ["2", SAME[0], OTHER[0], SAME[1], OTHER[1]],
            r"line 3: .* is a pair of two people; by the head .* one of one",
        ),
        (["1", "Ann\t1", OTHER[0]], r"line 2: 'Ann\\t1' has 2 fields; expected `NAME I J` or `NAME1 I NAME2 J`"),
        (["1", SAME[0], "Ann\t1\tBo\t2\t3"], r"line 3: .* has 5 fields"),
        (["1", "Ann 1 4", OTHER[0]], r"line 2: 'Ann 1 4' has 1 fields; .* separated by tabs"),
        (["1", "Ann\t1\t\t4", OTHER[0]], r"line 2: .* has 4 fields"),
        (["1", "Ann\tone\t4", OTHER[0]], r"line 2: 'one' is no number of a photo"),
        (["1", "Ann\t0\t4", OTHER[0]], r"line 2: '0' is no number"),
        (["1", "Ann\t1\t" + "9" * 5000, OTHER[0]], r"line 2: '9{79}\.\.\. is no number"),
        (["1", "Ann\t4\t04", OTHER[0]], r"line 2: .* is a pair of a photo with itself"),
        (["1", SAME[0], "Ann\t1\tAnn\t2"], r"line 3: .* is a pair of two people, but names 'Ann' twice"),
        ([*SAME, *OTHER], r"line 1: 'Ann\\t1\\t4'; expected the number of folds"),
        (["0\t300"], r"line 1: '0\\t300'; expected"),
        (["9" * 5000], r"line 1: '9{79}\.\.\.; expected"),
        (["1", "x" * 9000, OTHER[0]], r"line 2 has 9,000 characters, expected at most 8,192"),
        (["1\t2\t3"], r"line 1: '1\\t2\\t3'; expected"),
        ([""], r"line 1: ''; expected"),
    ],
)
def test_a_line_that_is_wrong_is_refused_by_its_number(tmp_path, lines, told):
    path = write(tmp_path / "pairs.txt", *lines)
    with pytest.raises(UserError, match=rf"pairs\.txt: {told}"):
        read_pairs(path)


def test_lists_that_are_no_text_or_not_there_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"1\nJos\xe9\t1\t2\nAnn\t1\tBo\t1\n")
    with pytest.raises(UserError, match=r"latin\.txt: line 2 is not UTF-8 \(byte 0xe9\)"):
        read_pairs(tmp_path / "latin.txt")
    for suffix in (".txt", ".csv", ".parquet"):
        with pytest.raises(UserError, match=rf"none{suffix}: .*[Nn]o such file"):
            read_pairs(tmp_path / f"none{suffix}")
    (tmp_path / "latin.csv").write_bytes(b"left,right,same\nJos\xe9.jpg,b.jpg,1\n")
    with pytest.raises(UserError, match=r"latin\.csv: .*invalid UTF8"):
        read_pairs(tmp_path / "latin.csv")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"no\.parquet: "):
        read_pairs(tmp_path / "no.parquet")


TABLE = [Pair("a/1.jpg", "b c/2, 3.jpg", False), Pair("a/1.jpg", "a/4.jpg", True)]


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("false", "true"), ("False", "TRUE")])
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_tables_of_text_name_two_photos_and_a_flag(tmp_path, no, yes, suffix, separator):
    rows = [("id", "same", "right", "left"), ("7", no, '"b c/2, 3.jpg"', "a/1.jpg"), ("8", yes, "a/4.jpg", "a/1.jpg")]
    path = write(tmp_path / f"pairs{suffix}", *(separator.join(row) for row in rows))
    assert read_pairs(path) == TABLE


@pytest.mark.parametrize("flags", [pa.array([False, True]), pa.array([0, 1], pa.int8()), pa.array(["0", "1"])])
def test_parquet_tables_have_columns_of_the_users_names(tmp_path, flags):
    lefts, rights, _ = zip(*TABLE, strict=True)
    table = pa.table({"b": rights, "a": pa.array(lefts, pa.large_string()), "match": flags, "more": [1.5, None]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert read_pairs(tmp_path / "pairs.parquet", Columns("a", "b", "match")) == TABLE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "left,right\na,b\n",
            r"no column 'same' among left, right; expected columns .* \(--left-column, --right",
        ),
        ("left,right,same\na,b,2\n", r"row 1: same is '2', expected 0, 1, true or false"),
        ("left,right,same\na,b,1\na,b,\n", r"row 2: same is '', expected"),
        ("left,right,same\na,b,1\n,b,1\n", r"row 2: left is '', expected the path"),
        ("left,right,same\na,b,1\na,b,0,5\n", r"Expected 3 columns, got 4"),
        ("left,right,same\na,a,1\n", r"row 1: 'a' is paired with itself"),
        ("left,right,same,left\na,b,1,c\n", r"2 columns 'left' among left, right, same, left"),
        ("left,right,same\n", r"no pair in it"),
    ],
)
def test_tables_that_are_wrong_are_refused_by_row_or_column(tmp_path, text, told):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=rf"pairs\.csv: .*{told}"):
        read_pairs(tmp_path / "pairs.csv")


def test_columns_of_parquet_tables_that_are_missing_or_of_another_kind_are_named(tmp_path):
    pq.write_table(pa.table({"left": ["a"], "right": [None], "other": [1]}), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"no column 'same' among left, right, other; expected columns"):
        read_pairs(tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"row 1: right is None, expected the path of a photo"):
        read_pairs(tmp_path / "pairs.parquet", Columns(same="other"))
    with pytest.raises(UserError, match=r"columns left, left, other: each has to be another"):
        read_pairs(tmp_path / "pairs.parquet", Columns("left", "left", "other"))


def test_parquet_tables_with_text_that_is_none_or_far_too_long_are_refused(tmp_path):
    path = tmp_path / "pairs.parquet"
    for left, told in (
        (pa.array([b"Jos\xe9.jpg", b"b"]).view(pa.string()), "UTF8"),
        (pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * (1 << 20)]), "104,857,600 bytes in"),
    ):
        pq.write_table(pa.table({"left": left, "right": ["b"] * len(left), "same": [1] * len(left)}), path)
        with pytest.raises(UserError, match=rf"pairs\.parquet: .*{told}"):
            read_pairs(path)


def test_lists_that_are_far_too_large_are_refused_before_each_pair_is_an_object(tmp_path, monkeypatch):
    text, table = tmp_path / "pairs.txt", tmp_path / "pairs.csv"
    write(text, "2", *SAME, *OTHER)
    write(table, "left,right,same", "a,b,1", f"{'x' * 9000},b,0")
    with pytest.raises(UserError, match=r"pairs\.csv: row 2: left has 9,000 characters, expected at most 8,192"):
        read_pairs(table)
    monkeypatch.setattr(pair_list, "_MOST_BYTES", 8000)
    with pytest.raises(UserError, match=r"pairs\.csv: more than .* or than 8,000 bytes of text; is it a list of pairs"):
        read_pairs(table)
    monkeypatch.setattr(pair_list, "_MOST_PAIRS", 1)
    pq.write_table(pa.table({"left": ["a", "a"], "right": ["b", "c"], "same": [1, 0]}), tmp_path / "pairs.parquet")
    for path, told in ((text, "5 lines"), (table, "more than 1 rows"), (tmp_path / "pairs.parquet", "2 rows")):
        with pytest.raises(UserError, match=rf"{path.name}: {told}"):
            read_pairs(path)
    monkeypatch.setattr(text_file, "_MOST_BYTES", 20)
    for path in (text, table):
        with pytest.raises(UserError, match=rf"{path.name}: \d+ bytes, expected at most 20"):
            read_pairs(path)


@pytest.mark.parametrize("name", ["pairs.txt", "pairs.csv"])
def test_a_pipe_in_place_of_a_list_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: a pipe, a device or a directory"):
        read_pairs(tmp_path / name)
