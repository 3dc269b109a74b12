"""`identities.parquet` as foreign or damaged sets bring it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_train.data.identities import read_identities
from dist_train.data.inspect import describe
from dist_train.errors import UserError
from launch.embed.shards import ShardOrigin
from tests.data.sets import make_set


def table(path, **columns):
    pq.write_table(pa.table(columns), path / "identities.parquet")
    return path / "identities.parquet"


def test_labels_and_counts_come_as_whole_numbers_whatever_their_width(tmp_path):
    path = table(tmp_path, label=pa.array([1, 0], pa.int8()), count=pa.array([5, 6], pa.uint16()), other=["x", "y"])
    found = read_identities(path, "count", num_classes=2)
    assert found.to_pydict() == {"label": [1, 0], "count": [5, 6]}
    assert found.schema.types == [pa.int64(), pa.int64()]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 5], "count": [1, 1]}, r"labels 0 \.\. 5, expected 0 \.\. 2"),
        ({"label": [-1, 0], "count": [1, 1]}, r"labels -1 \.\. 0"),
        ({"label": [1, 1], "count": [1, 1]}, "1 labels are there twice"),
        ({"label": [0, 1], "count": [1, -4]}, "an identity has -4 pictures"),
        ({"label": [0, None], "count": [1, 1]}, "column label has 1 rows without a value"),
        ({"label": [0.0, float("nan")], "count": [1, 1]}, "cannot be read"),
        ({"label": ["0", "x"], "count": [1, 1]}, "cannot be read"),
        ({"label": [0, 1], "count": [[1], [1]]}, "cannot be read"),
        ({"label": [0, 1]}, "expected label and count"),
        ({"label": [0, 1, 2, 2], "count": [1, 1, 1, 1]}, "4 rows for 3 identities"),
        ({"label": pa.array([2**63], pa.uint64()), "count": [1]}, "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_its_set_is_refused_by_name(tmp_path, columns, message):
    make_set(tmp_path, [3], num_classes=3, size=16)
    path = table(tmp_path, **columns)
    with pytest.raises(UserError, match=rf"{path}: .*{message}"):
        read_identities(path, "count", num_classes=3)


def test_changed_bytes_of_a_table_are_refused_or_read(tmp_path):
    manifest = make_set(tmp_path, [3], num_classes=3, size=16)
    path = table(tmp_path, label=[0, 1, 2], name=["a", "b", "c"], count=[1, 1, 1])
    sound = path.read_bytes()
    chance = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(sound)
        changed[int(chance.integers(len(sound)))] ^= 1 << int(chance.integers(8))
        path.write_bytes(changed)
        try:
            describe(tmp_path, manifest)
            next(ShardOrigin(tmp_path, "label").batches())
        except UserError as error:
            refused += "identities.parquet" in str(error)
    assert refused > 50


def test_a_small_table_of_very_many_rows_is_refused_before_it_is_unpacked(tmp_path):
    rows = pa.array(np.zeros(3_000_000, np.int64))
    path = table(tmp_path, label=rows, count=rows)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="3000000 rows for 3 identities"):
        read_identities(path, "count", num_classes=3)


LONG = "x" * (1 << 20)
ALIKE = [f"{LONG}{number}" for number in range(100)]


@pytest.mark.parametrize(
    ("names", "stored", "message"),
    [
        (pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), [LONG]), {}, r"104,857,600 bytes in 100 rows"),
        (ALIKE, {"use_dictionary": False}, r"bytes in 100 rows, expected at most 67,"),
        (ALIKE, {"use_dictionary": False, "column_encoding": {"name": "DELTA_BYTE_ARRAY"}}, "DELTA_BYTE_ARRAY"),
        (pa.array([bytes(1 << 20)] * 100, pa.binary(1 << 20)), {}, "values of 1048576 bytes"),
        ([[["a"] * 1000]] * 100, {}, "100,000 values in 100 rows"),
        ([{"a": LONG}] * 100, {}, "text inside of lists or records"),
    ],
)
def test_a_small_table_of_very_much_text_is_refused_before_it_is_unpacked(tmp_path, names, stored, message):
    path = tmp_path / "identities.parquet"
    columns = pa.table({"label": range(100), "name": names})
    pq.write_table(columns, path, compression="zstd", write_statistics=False, **stored)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=rf"{path}: cannot be read: column name.*{message}"):
        read_identities(path, "name", num_classes=100)


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    names = pa.array([b"Jos\xe9", b"b"]).view(pa.string())
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read: .*UTF8"):
        read_identities(table(tmp_path, label=[0, 1], name=names), "name", num_classes=2)
