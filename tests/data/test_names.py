"""The names of a run's classes, over all of its sets."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_train.data.config import DataConfig
from dist_train.data.names import class_names
from dist_train.errors import UserError
from tests.data.sets import make_set
from tests.data.test_remote import Server


def named(directory, names):
    make_set(directory, [2 * len(names)], num_classes=len(names))
    pq.write_table(pa.table({"label": range(len(names)), "name": names}), directory / "identities.parquet")


def of(table):
    return dict(zip(table["label"].to_pylist(), table["name"].to_pylist(), strict=True))


def test_names_of_mixed_sets_follow_their_labels(tmp_path):
    named(tmp_path / "a", ["a0", "a1"])
    named(tmp_path / "b", ["b0", "b1", "b2"])
    named(tmp_path / "c", ["c0", "c1", "c2"])
    table = pq.read_table(tmp_path / "c" / "identities.parquet")
    pq.write_table(table.select(["name", "label"]), tmp_path / "c" / "identities.parquet")  # as others may write it
    make_set(tmp_path / "d", [6], num_classes=2)  # without names
    mix = [{"path": str(tmp_path / name), "weight": 1, "shared_labels": name == "c"} for name in "dbc"]
    found = of(class_names(DataConfig(path=str(tmp_path / "a"), mix=mix)))
    # The set d has labels 2 and 3 here, b from 4 on; c's labels mean what a's and d's do.
    assert found == {0: "a0", 1: "a1", 4: "b0", 5: "b1", 6: "b2", 2: "c2"}
    assert class_names(DataConfig(path=str(tmp_path / "d"))) is None


def test_names_of_a_set_behind_an_address_are_read_there(tmp_path):
    named(tmp_path, ["x", "y"])
    with Server(tmp_path) as server:
        config = DataConfig(path=server.url, retries=0)
        assert of(class_names(config)) == {0: "x", 1: "y"}
        (tmp_path / "identities.parquet").write_bytes(b"no table")
        with pytest.raises(UserError, match=r"identities\.parquet: cannot be read"):
            class_names(config)
        (tmp_path / "identities.parquet").unlink()
        assert class_names(config) is None
