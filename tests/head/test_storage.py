"""Tables outside the computing device. Tier 1: no ranks, no devices."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import torch

from dist_train.errors import UserError
from dist_train.head import mapped_table
from dist_train.head.mapped_table import map_table
from dist_train.head.rounding import StochasticRounder
from dist_train.head.storage import RowStore, TableSpec, fill_normal
from tests.gpuless.pretence import GPU, pretended_gpu

CPU = torch.device("cpu")


def store(kind, directory, dtype=torch.float32, owner=(0, 1), device=CPU):
    specs = [TableSpec("centers", 4, dtype), TableSpec("squares", 1, torch.float32)]
    return RowStore(specs, 10, device, kind, directory, owner, StochasticRounder(1, 0, device))


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


@pytest.mark.parametrize("note", [None, "", '{"shape": [3, 2], "dt', '{"shape": [3, 2], "dtype": "float32"}'])
def test_what_a_kill_left_of_a_mapped_file_is_taken_over(note, tmp_path):
    (tmp_path / "rows").write_bytes(b"12345")
    if note is not None:
        (tmp_path / "rows.json").write_text(note)
    assert (map_table(tmp_path / "rows", (3, 2), torch.float32) == 0).all()
    assert json.loads((tmp_path / "rows.json").read_text()) == {"shape": [3, 2], "dtype": "float32"}


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


def test_a_directory_is_one_runs_until_its_store_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_table, "_WAIT_S", 0.0)
    first = store("mmap", tmp_path)
    first.tables["centers"].fill_(3.0)
    for owner in ((0, 1), (0, 2)):
        with pytest.raises(
            UserError,
            match=r"head\.storage_dir: another run holds \S+/rows-00000-of-00001\.lock "
            rf"\(process {os.getpid()} on \S+, since .*\); wait for it, stop it, or give another directory",
        ):
            store("mmap", tmp_path, owner=owner)
    assert (first.tables["centers"] == 3).all()
    first.close()
    second = store("mmap", tmp_path)
    assert not second.tables["centers"].any()
    second.close()


def test_a_store_that_cannot_be_opened_leaves_its_directory_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_table, "_WAIT_S", 0.0)
    (tmp_path / "squares-00000-of-00001").write_bytes(b"")
    (tmp_path / "squares-00000-of-00001.json").write_text('{"shape": [5, 1], "dtype": "float32"}')
    with pytest.raises(UserError, match="squares-00000-of-00001 holds") as kept:  # and with it the frame
        store("mmap", tmp_path)
    (tmp_path / "squares-00000-of-00001").unlink()
    store("mmap", tmp_path).close()
    assert kept


def test_files_of_another_number_of_ranks_are_removed_unless_a_run_holds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_table, "_WAIT_S", 0.0)
    for rank in range(3):
        store("mmap", tmp_path, owner=(rank, 3)).close()
    others = {"model-00001-of-00003", "centers-00001-of-00003.txt"}
    for name in others:
        (tmp_path / name).touch()
    held = store("mmap", tmp_path, owner=(2, 3))
    with pytest.raises(UserError, match=r"another run holds \S+/rows-00002-of-00003\.lock"):
        store("mmap", tmp_path, owner=(1, 2))
    held.close()
    ranks = [store("mmap", tmp_path, owner=(rank, 2)) for rank in range(2)]
    shares = (f"{name}-{rank:05d}-of-00002" for name in ("centers", "squares") for rank in range(2))
    own = {name + ending for name in shares for ending in ("", ".json")}
    locks = {f"rows-{rank:05d}-of-00002.lock" for rank in range(2)}
    assert {path.name for path in tmp_path.iterdir()} == own | locks | others
    for rank in ranks:
        rank.close()


def test_a_run_where_nothing_can_be_locked_is_warned_and_leaves_the_rows_of_others_as_they_are(
    tmp_path, monkeypatch, caplog
):
    def none(descriptor, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    first = store("mmap", tmp_path)
    first.tables["centers"].fill_(3.0)
    stores = [first, *(store("mmap", tmp_path, owner=owner) for owner in ((0, 1), (0, 2)))]
    assert (first.tables["centers"] == 3).all()
    assert not stores[1].tables["centers"].any()
    assert (tmp_path / "centers-00000-of-00001").exists()
    assert "rows-00000-of-00001.lock cannot be locked (Operation not supported): see to it" in caplog.text
    for each in stores:
        each.close()


def test_a_mapped_tables_copy_for_a_checkpoint_lies_on_the_disk_and_has_its_room_from_the_start(tmp_path, monkeypatch):
    rows = store("mmap", tmp_path)
    rows.tables["centers"].copy_(torch.arange(40.0).view(10, 4))
    for _ in range(2):
        taken = rows.snapshot()
        rows.before_change("centers", slice(0, 5))
        for table in taken.values():
            table.fill()
        copy = taken["centers"].copy
        assert torch.equal(copy, torch.arange(40.0).view(10, 4))
        mapped = next(line for line in Path("/proc/self/maps").read_text().splitlines() if _holds(line, copy))
        assert str(tmp_path) in mapped
        assert mapped.endswith("(deleted)")
        rows.end_snapshot()
    rows.close()

    def full(descriptor, offset, size, reserve=os.posix_fallocate):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("(deleted)"):
            raise OSError(28, "No space left on device")
        reserve(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"a checkpoint's copy of \S+/centers-00000-of-00001 needs 0\.0 GB, .* are"):
        store("mmap", tmp_path)


def _holds(line, tensor):
    first, last = (int(end, 16) for end in line.split()[0].split("-"))
    return first <= tensor.data_ptr() < last


def test_a_gpus_staging_buffers_are_given_back_when_it_has_copied_them_and_they_alone_are_pinned(tmp_path, monkeypatch):
    said = []

    class Event:
        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("synchronize")

    def made(*size, empty=torch.empty, pin_memory=False, **options):
        if pin_memory:
            said.append("pinned")
        return empty(*size, **options)

    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch, "empty", made)
        rows = store("host", tmp_path, device=GPU)
        assert said == []
        give_back = rows.put_back
        monkeypatch.setattr(rows, "put_back", lambda host: (said.append("given back"), give_back(host)))
        lease = rows.lease(torch.tensor([1, 4]))
        lease.read("centers", 0, 2)
        lease.release()
        assert said == ["pinned", "pinned", "record", "synchronize", "given back"]
        said.clear()
        rows.lease(torch.tensor([1, 4])).release()  # the device has seen nothing of it
        assert said == ["given back"]
        said.clear()
        lease = rows.lease(torch.tensor([1, 4]))
        lease.write("centers", 0, 2, lease.read("centers", 0, 2))
        lease.commit()
        assert said == ["record", "record", "synchronize", "given back"]
        rows.close()


def test_initial_rows_depend_on_seed_and_class_alone():
    whole, part = torch.empty(3000, 6), torch.empty(1100, 6)
    fill_normal(whole, 0, 7, 0.01)
    fill_normal(part, 900, 7, 0.01)
    assert torch.equal(whole[900:2000], part)
    assert abs(float(whole.std()) - 0.01) < 2e-4
    other = torch.empty(1100, 6)
    fill_normal(other, 900, 8, 0.01)
    assert not torch.equal(part, other)
