"""Tables outside the computing device. Tier 1: no ranks, no devices."""

import json
import os

import pytest
import torch

from dist_train.errors import UserError
from dist_train.head.rounding import StochasticRounder
from dist_train.head.storage import RowStore, TableSpec, fill_normal, map_table

CPU = torch.device("cpu")


def store(kind, directory, dtype=torch.float32):
    specs = [TableSpec("centers", 4, dtype), TableSpec("squares", 1, torch.float32)]
    return RowStore(specs, 10, CPU, kind, directory, (0, 1), StochasticRounder(1, 0, CPU))


@pytest.mark.parametrize("kind", ["device", "host", "mmap"])
def test_a_lease_writes_its_rows_and_no_others(kind, tmp_path):
    rows = store(kind, tmp_path)
    rows.tables["centers"].copy_(torch.arange(40.0).view(10, 4))
    lease = rows.lease(torch.tensor([1, 4, 9]))
    assert torch.equal(lease.pick("centers", torch.tensor([2]))[0], torch.tensor([36.0, 37, 38, 39]))
    block = lease.read("centers", 1, 3)
    assert torch.equal(block[:, 0], torch.tensor([16.0, 36.0]))
    lease.write("centers", 1, 3, block.mul_(-1))
    lease.commit()
    rows.flush()
    expected = torch.arange(40.0).view(10, 4)
    expected[[4, 9]] *= -1
    assert torch.equal(rows.tables["centers"], expected)
    rows.close()


def test_a_fetch_waits_for_the_write_back_before_it(tmp_path):
    rows = store("mmap", tmp_path)
    classes = torch.arange(10)
    for number in range(50):
        lease = rows.lease(classes)
        block = lease.read("centers", 0, 10)
        assert (block == number).all()
        lease.write("centers", 0, 10, block.add_(1))
        lease.commit()
    rows.close()


def test_a_mapped_file_holds_what_was_written_and_starts_from_zero_again(tmp_path):
    table = map_table(tmp_path / "rows", (3, 2), torch.bfloat16)
    table.fill_(2.0)
    assert (tmp_path / "rows").stat().st_size == 12
    assert json.loads((tmp_path / "rows.json").read_text()) == {"shape": [3, 2], "dtype": "bfloat16"}
    assert (map_table(tmp_path / "rows", (3, 2), torch.bfloat16) == 0).all()


def test_a_mapped_file_of_another_shape_is_refused(tmp_path):
    map_table(tmp_path / "rows", (3, 2), torch.float32)
    with pytest.raises(UserError, match=r"rows holds .*\[3, 2\].*expected .*\[4, 2\].*another directory or delete"):
        map_table(tmp_path / "rows", (4, 2), torch.float32)


def test_a_full_disk_is_told_with_sizes_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"rows needs 8\.0 GB, .* GB are free \(No space left on device\)"):
        map_table(tmp_path / "rows", (1_000_000, 2000), torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/store/rows"):
        map_table(tmp_path / "file" / "store" / "rows", (3, 2), torch.float32)


def test_initial_rows_depend_on_seed_and_class_alone():
    whole, part = torch.empty(3000, 6), torch.empty(1100, 6)
    fill_normal(whole, 0, 7, 0.01)
    fill_normal(part, 900, 7, 0.01)
    assert torch.equal(whole[900:2000], part)
    assert abs(float(whole.std()) - 0.01) < 2e-4
    other = torch.empty(1100, 6)
    fill_normal(other, 900, 8, 0.01)
    assert not torch.equal(part, other)
