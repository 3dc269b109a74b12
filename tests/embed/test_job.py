import csv
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.embed import table
from dist_train.embed.parts import Parts
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.pictures import to_tensor
from tests.embed.standin import DIM, Numbers, embed, embed_on_rank, embed_pixels, model, pixels
from tests.ranks import run_ranks

KEPT = [number for number in range(47) if number % 7 != 3]
LEFT = [number for number in range(47) if number % 7 == 3]


def expected():
    images = to_tensor([pixels(number) for number in KEPT])
    return (embed_pixels(images) + embed_pixels(images.flip(3))).numpy()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Embeddings of a job that nothing disturbed."""
    out = tmp_path_factory.mktemp("embed") / "deep" / "out.parquet"
    embed(out, Numbers())
    return out


def rejected(out):
    with out.with_name(f"{out.name}.rejects.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def test_a_table_holds_the_embedding_and_all_that_is_known_of_each_picture_in_the_order_of_the_source(finished):
    rows = pq.read_table(finished)
    assert np.allclose(np.stack(rows["embedding"].to_pylist()), expected(), atol=1e-6)
    assert rows["path"].to_pylist() == [f"pictures/{n:03d}" for n in KEPT]
    assert rows["offset"].to_pylist() == [n * 512 for n in KEPT]
    assert rows["identity"].to_pylist() == [f"person {n % 5}" for n in KEPT]
    assert rows["label"].to_pylist() == [n % 5 for n in KEPT]
    assert rows["score"].to_pylist() == [0.5] * len(KEPT)
    assert rows["landmarks"].to_pylist() == [list(range(10)) if n % 2 else None for n in KEPT]
    images = to_tensor([pixels(number) for number in KEPT])
    raw = (embed_pixels(images).norm(dim=1) + embed_pixels(images.flip(3)).norm(dim=1)) / 2
    assert np.allclose(rows["norm"].to_numpy(), raw, atol=1e-6)


def test_every_input_without_an_embedding_is_listed_with_its_reason_and_counted(tmp_path):
    made = embed(tmp_path / "out.parquet", Numbers())
    assert made.count == len(KEPT)
    assert made.reasons == {"no face": len(LEFT)}
    assert rejected(made.path) == [[f"pictures/{n:03d}", "no face", f'in "{n}",\nnone'] for n in LEFT]
    assert str(made) == (
        f"{made.path}: {len(KEPT)} embeddings; left out: {len(LEFT)} no face, each with its reason in "
        f"{made.path}.rejects.csv"
    )
    told = [f'  pictures/{n:03d}: no face: in "{n}",\\nnone' for n in LEFT[:3]] + [f"  and {len(LEFT) - 3} more"]
    assert made.examples() == told
    assert embed(tmp_path / "out.parquet", Numbers()).examples() == told, "found finished"
    assert embed(tmp_path / "few.parquet", Numbers(count=4)).examples() == told[:1]


def test_an_array_has_the_rows_of_the_table_and_their_names_beside_it(tmp_path, finished):
    embed(tmp_path / "out.npy", Numbers())
    array = np.load(tmp_path / "out.npy")
    names = pq.read_table(tmp_path / "out.names.parquet")
    rows = pq.read_table(finished)
    assert np.array_equal(array, np.stack(rows["embedding"].to_pylist()).astype(np.float32))
    assert names.equals(rows.drop_columns(["embedding"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.names.parquet", "out.npy", "out.npy.rejects.csv"]


@pytest.mark.parametrize("stop_at", [0, 9, 10, 25, 46])
def test_a_job_that_failed_anywhere_goes_on_and_gives_the_same_file(tmp_path, finished, stop_at):
    out = tmp_path / "out.parquet"
    with pytest.raises(WorkError, match="stopped"):
        embed(out, Numbers(stop_at=stop_at))
    assert not out.exists()
    again = Numbers()
    embed(out, again)
    assert out.read_bytes() == finished.read_bytes()
    assert rejected(out) == rejected(finished)
    # Read-ahead fails before the chunk in front of it is embedded, which may cost that part.
    assert again.asked[0] in (stop_at // 10 * 10, max(0, stop_at // 10 * 10 - 10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet", "out.parquet.rejects.csv"]


def test_a_killed_job_goes_on_and_gives_the_same_file(tmp_path, finished):
    out = tmp_path / "out.parquet"
    script = (
        f"from tests.embed.standin import *; embed({str(out)!r}, Numbers(stop_at=33, kill=True)); print('not killed')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.returncode == -9, ended.stderr
    assert list((tmp_path / "out.parquet.parts").glob("0*.parquet"))
    again = Numbers()
    embed(out, again)
    assert out.read_bytes() == finished.read_bytes()
    assert min(again.asked) >= 10


def test_a_kill_while_the_output_is_put_together_leaves_nothing_beside_it(tmp_path, finished, monkeypatch):
    out = tmp_path / "out.npy"
    script = (
        "from tests.embed.standin import *; from dist_train.embed.parts import Parts; "
        "Parts._tables = lambda self: (yield os.kill(os.getpid(), signal.SIGKILL)); "
        f"embed({str(out)!r}, Numbers()); print('not killed')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.returncode == -9, ended.stderr
    assert list((tmp_path / "out.npy.parts").glob(".*.tmp"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy.parts", "out.npy.rejects.csv"]
    join, left = Parts.join, []
    monkeypatch.setattr(Parts, "join", lambda self: left.extend(self.home.glob(".*.tmp")) or join(self))
    assert embed(out, Numbers()).count == len(KEPT)
    assert left == []
    assert np.array_equal(np.load(out), np.stack(pq.read_table(finished)["embedding"].to_pylist()).astype(np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.names.parquet", "out.npy", "out.npy.rejects.csv"]


def test_two_ranks_share_the_inputs_and_give_the_same_file(tmp_path, finished):
    out = tmp_path / "out.parquet"
    (first, count), (second, nothing) = run_ranks(2, embed_on_rank, str(out))
    assert sorted(first + second) == list(range(47))
    assert first
    assert second
    assert (count, nothing) == (len(KEPT), None)
    assert out.read_bytes() == finished.read_bytes()


def test_a_finished_output_is_left_alone(tmp_path):
    out = tmp_path / "out.parquet"
    embed(out, Numbers())
    before = out.stat().st_mtime_ns
    again = Numbers()
    made = embed(out, again)
    assert (made.count, made.reasons) == (len(KEPT), {"no face": len(LEFT)})
    assert again.asked == []
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize("done", [True, False], ids=["finished", "begun"])
def test_an_output_of_another_model_or_other_options_is_refused_with_both_named(tmp_path, done):
    out = tmp_path / "out.npy"
    if done:
        embed(out, Numbers())
    else:
        with pytest.raises(WorkError):
            embed(out, Numbers(stop_at=20))
    for options, words in (
        ({"model": model("b" * 64)}, "model.sha256 was 'aaaaaaaaaaaaaaaaaaa..., is 'bbbbbbbbbbbbbbbbbbb..."),
        ({"flip": False}, "flip was True, is False"),
    ):
        with pytest.raises(UserError) as caught:
            embed(out, Numbers(), **options)
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"source\.path was 'numbers', is 'others'; use another OUT, or remove it"):
        embed(out, Numbers(path="others"))
    assert embed(out, Numbers()).count == len(KEPT)


def test_a_second_job_on_the_same_output_is_refused(tmp_path):
    out = tmp_path / "out.parquet"
    (tmp_path / "out.parquet.parts").mkdir()
    with (tmp_path / "out.parquet.parts" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another job is working on it"):
            embed(out, Numbers())


def test_a_full_disk_names_the_file_and_the_same_call_goes_on(tmp_path, finished, monkeypatch):
    out = tmp_path / "out.parquet"
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            WorkError, match=r"out\.parquet\.parts/0.*No space left on device; make room and run the same"
        ):
            embed(out, Numbers())
    assert not list((tmp_path / "out.parquet.parts").glob(".*.tmp"))
    embed(out, Numbers())
    assert out.read_bytes() == finished.read_bytes()


def test_a_source_that_gives_no_embedding_is_a_failure_with_its_reasons(tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(
        WorkError, match=r"none of 47 inputs gave an embedding \(47 not a picture\), e\.g\. pictures/000"
    ):
        embed(out, Numbers(reason="not a picture"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet.rejects.csv"]


def test_a_lost_disk_is_no_reason_to_list_its_pictures_as_gone(tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(WorkError, match=r"none of 10 inputs can be read, the first: pictures/000: vanished"):
        embed(out, Numbers(reason="vanished"))
    assert embed(out, Numbers()).count == len(KEPT)


def test_embeddings_that_are_not_finite_name_the_pictures(tmp_path):
    broken = model(embed=lambda images: torch.full((len(images), DIM), torch.nan))
    with pytest.raises(WorkError, match=r"pictures/000 to pictures/002: .* is not finite"):
        embed(tmp_path / "out.parquet", Numbers(), model=broken)


def test_outputs_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.parquet or \.npy"):
        embed(tmp_path / "out.csv", Numbers())
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        embed(tmp_path / "x.npy", Numbers())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        embed(tmp_path / "file" / "out.npy", Numbers())
    with pytest.raises(UserError, match="numbers: nothing in it to embed"):
        embed(tmp_path / "out.npy", Numbers(count=0))
    pq.write_table(table.NAMES.empty_table(), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match="not written by `headcount embed`"):
        embed(tmp_path / "mine.parquet", Numbers())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine.parquet", "x.npy"]


def test_files_that_are_no_embeddings_are_named(tmp_path, finished):
    with pytest.raises(UserError, match="no such file; make it with `headcount embed"):
        EmbeddingFile(tmp_path / "none.npy")
    with pytest.raises(UserError, match=r"expected a \.parquet or \.npy"):
        EmbeddingFile(tmp_path / "none.txt")
    np.save(tmp_path / "alone.npy", np.zeros((3, DIM), np.float32))
    with pytest.raises(UserError, match=r"alone\.names\.parquet is not beside it"):
        EmbeddingFile(tmp_path / "alone.npy")
    (tmp_path / "cut.parquet").write_bytes(finished.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.parquet: cannot be read"):
        EmbeddingFile(tmp_path / "cut.parquet")
    embed(tmp_path / "out.npy", Numbers())
    np.save(tmp_path / "out.npy", np.zeros((3, DIM), np.float32))
    with pytest.raises(UserError, match=r"\[3, 6\], but out\.names\.parquet names 40 rows of 6"):
        EmbeddingFile(tmp_path / "out.npy")
