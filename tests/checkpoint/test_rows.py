"""Rows out of a stored table: the right ones, in little memory, and only out of what a checkpoint may be."""

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from dist_train.checkpoint.rows import StoredTable
from dist_train.errors import WorkError

PAGE = os.sysconf("SC_PAGE_SIZE")


def stored(path: Path, **tables: torch.Tensor) -> Path:
    dcp.save({"head": tables}, checkpoint_id=path, no_dist=True)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_by_number(tmp_path, dtype):
    table = torch.randn(1003, 7).to(dtype)
    rows = StoredTable(stored(tmp_path, centers=table, momentum=table * 2), "head.momentum")
    assert rows.shape == (1003, 7)
    assert rows.dtype == dtype
    for numbers in ([], [0], [5, 6, 7, 1002], range(1003)):
        wanted = np.array(numbers, dtype=np.int64)
        assert torch.equal(rows.take(wanted), (table * 2)[torch.from_numpy(wanted)])
    for outside in ([-1, 3], [3, 1003]):
        with pytest.raises(IndexError, match="of 1003"):
            rows.take(np.array(outside))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_pass_over_a_table_holds_one_block_of_it(tmp_path):
    classes, width, block = 40_000, 256, 1000  # 41 MB, 1 MB at a time
    rows = StoredTable(stored(tmp_path, centers=torch.zeros(classes, width)), "head.centers")
    rows.take(np.arange(block))
    before, most = resident(), 0
    for start in range(0, classes, block):
        rows.take(np.arange(start, start + block))
        most = max(most, resident() - before)
    assert most < 10 << 20


def replaced(path: Path, table: torch.Tensor, record: bytes) -> StoredTable:
    """The table after another record has taken the place of its own."""
    stored(path, centers=table)
    with (path / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    (info,) = metadata.storage_data.values()
    (path / info.relative_path).write_bytes(record)
    info.offset, info.length = 0, len(record)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return StoredTable(path, "head.centers")


def saved(body: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(body, buffer)
    return buffer.getvalue()


TABLE = torch.arange(32.0).view(8, 4)


def encrypted(record: bytes) -> bytes:
    """A record whose entries claim to be encrypted, in the archive's directory and before each of them."""
    for magic, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for place in [found.start() for found in re.finditer(re.escape(magic), record)]:
            record = record[: place + flags] + bytes([record[place + flags] | 1]) + record[place + flags + 1 :]
    return record


class Caller:
    def __reduce__(self):
        return (os.mkdir, ("called",))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (saved(TABLE.t().contiguous().t()), "not of a tensor [8, 4] that is stored row after row"),
        (saved(torch.arange(40.0)[8:].view(8, 4)), "not of a tensor [8, 4] that is stored row after row"),
        (saved(TABLE.view(4, 8)), "not of a tensor [8, 4] that is stored row after row"),
        (saved([TABLE]), "not of a tensor [8, 4] that is stored row after row"),
        (saved(TABLE.to(torch.float64)), "DoubleStorage, which a table of torch.float32 does not need"),
        (saved(TABLE.int()), "IntStorage"),
        (saved(Caller()), "which no tensor needs"),
        (saved(TABLE)[:-30], "not a zip file"),
        (saved(TABLE).replace(b"PK\x03\x04", b"PK\x03\x05"), "Bad magic number"),
        (bytes(2000), "not a zip file"),
        (encrypted(saved(TABLE)), "is encrypted"),
    ],
)
def test_what_is_no_table_by_torch_is_refused_without_running_it(tmp_path, monkeypatch, record, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkError, match=re.escape(message)):
        replaced(tmp_path / "checkpoint", TABLE, record)
    assert not Path("called").exists()


def test_a_table_that_is_not_there_or_no_table_of_a_head_is_refused(tmp_path):
    stored(tmp_path, centers=TABLE, steps=torch.tensor(3), counts=TABLE.int())
    for name, message in (("other", "no table head.other"), ("steps", "no table"), ("counts", "is torch.int32")):
        with pytest.raises(WorkError, match=message):
            StoredTable(tmp_path, f"head.{name}")
