import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_train.data.class_counts import class_counts
from dist_train.data.config import DataConfig
from dist_train.data.sources import open_sources
from dist_train.errors import UserError, WorkError
from tests.data.sets import make_set
from tests.data.test_remote import Server


def write_counts(directory, counts, first=0):
    labels = range(first, first + len(counts))
    pq.write_table(pa.table({"label": labels, "count": counts}), directory / "identities.parquet")


def counts_of(config):
    return class_counts(open_sources(config), config.retries)


def test_counts_of_mixed_sets_follow_their_labels(tmp_path):
    for name, counts in (("a", [3, 4, 3]), ("b", [5, 5]), ("c", [1, 1, 2])):
        make_set(tmp_path / name, [sum(counts)], num_classes=len(counts))
        write_counts(tmp_path / name, counts)
    mix = [{"path": str(tmp_path / "b"), "weight": 1}]
    mix.append({"path": str(tmp_path / "c"), "weight": 1, "shared_labels": True})
    found = counts_of(DataConfig(path=str(tmp_path / "a"), mix=mix))
    assert found.tolist() == [4, 5, 5, 5, 5]


def test_a_set_without_counts_or_with_those_of_another_is_named(tmp_path):
    make_set(tmp_path, [6], num_classes=3)
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read: .*take another margin"):
        counts_of(DataConfig(path=str(tmp_path)))
    write_counts(tmp_path, [2, 2, 2], first=1)
    with pytest.raises(UserError, match=r"labels 1 \.\. 3, expected 0 \.\. 2"):
        counts_of(DataConfig(path=str(tmp_path)))
    (tmp_path / "identities.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read"):
        counts_of(DataConfig(path=str(tmp_path)))


def test_counts_of_a_set_behind_an_address_are_read_there(tmp_path):
    make_set(tmp_path, [6], num_classes=3)
    write_counts(tmp_path, [1, 2, 3])
    with Server(tmp_path) as server:
        config = DataConfig(path=server.url, retries=0)
        assert counts_of(config).tolist() == [1, 2, 3]
        (tmp_path / "identities.parquet").write_bytes(b"no table")
        with pytest.raises(UserError, match=rf"{server.url}/identities\.parquet: cannot be read: .*another margin"):
            counts_of(config)
        (tmp_path / "identities.parquet").unlink()
        with pytest.raises(UserError, match=rf"{server.url}/identities\.parquet: .* it is not there; .*another margin"):
            counts_of(config)
        server.trouble = {"identities.parquet": ["error"]}
        with pytest.raises(WorkError, match=rf"{server.url}/identities\.parquet: no success in 1 tries"):
            counts_of(config)
