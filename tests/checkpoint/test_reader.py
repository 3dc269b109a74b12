"""Tables out of a checkpoint: into their place, whatever that is like, and in no more memory than they have there."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dist_train.checkpoint.reader import load_tensors
from dist_train.errors import WorkError

TABLE = torch.arange(35.0).view(7, 5)


@pytest.mark.parametrize(
    ("stored", "place"),
    [
        (TABLE, torch.zeros(7, 5)),
        (TABLE.bfloat16(), torch.zeros(7, 5, dtype=torch.bfloat16)),
        (TABLE, torch.zeros(14, 5)[3:10]),
        (TABLE, torch.zeros(5, 7).t()),
        (TABLE, torch.zeros(7, 5, dtype=torch.float64)),
        (TABLE.t().contiguous().t(), torch.zeros(7, 5)),
        (TABLE.half(), torch.zeros(7, 5, dtype=torch.float16)),
    ],
    ids=["float32", "bfloat16", "a part", "columns", "another type", "stored by columns", "a type of no table"],
)
def test_a_table_comes_into_its_place(tmp_path, stored, place):
    dcp.save({"head": {"centers": stored}}, checkpoint_id=tmp_path, no_dist=True)
    load_tensors({"head": {"centers": place}}, tmp_path, alone=True)
    assert torch.equal(place.float(), TABLE)


def peak() -> int:
    """Most memory so far since it was last counted from here on."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def test_a_table_is_held_once_while_it_is_loaded(tmp_path):
    table = torch.ones(50_000, 256)  # 51 MB
    dcp.save({"head": {"centers": table}}, checkpoint_id=tmp_path, no_dist=True)
    load_tensors({"head": {"centers": table}}, tmp_path, alone=True)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    load_tensors({"head": {"centers": table}}, tmp_path, alone=True)
    assert peak() - before < 10 << 20


def test_a_file_that_was_cut_meanwhile_is_named(tmp_path, monkeypatch):
    dcp.save({"head": {"centers": TABLE}}, checkpoint_id=tmp_path, no_dist=True)
    monkeypatch.setattr("dist_train.checkpoint.reader.find_numbers", lambda *given: 1 << 20)
    with pytest.raises(dcp.api.CheckpointException) as failed:
        load_tensors({"head": {"centers": torch.zeros(7, 5)}}, tmp_path, alone=True)
    (error,) = failed.value.failures.values()
    assert isinstance(error[0], WorkError)
    assert f"{tmp_path / '__0_0.distcp'} ends at byte" in str(error[0])
