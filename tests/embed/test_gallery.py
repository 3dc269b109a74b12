import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.embed import segment
from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.embed.table import names_path
from dist_train.errors import UserError, WorkError
from tests.embed.standin import DIM, Numbers, embed, model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Embeddings of two sources by one model, one in each form."""
    home = tmp_path_factory.mktemp("embeddings")
    embed(home / "first.parquet", Numbers(path="/first"))
    embed(home / "second.npy", Numbers(first=100, count=120, path="/second"))
    return [home / "first.parquet", home / "second.npy"]


def stored(files):
    rows = [np.stack(pq.read_table(files[0])["embedding"].to_pylist()), np.load(files[1])]
    all_rows = np.concatenate(rows).astype(np.float64)
    return all_rows / np.linalg.norm(all_rows, axis=1, keepdims=True)


def test_a_search_gives_the_rows_with_the_largest_cosines_and_what_is_known_of_them(tmp_path, files, monkeypatch):
    monkeypatch.setattr(segment, "_BATCH_ROWS", 16)  # several batches of entries
    gallery = build_gallery(files, tmp_path / "gallery", quiet=True)
    assert len(gallery) == 57
    assert [source["path"] for source in gallery.sources] == ["/first", "/second"]
    rows = stored(files)
    queries = np.random.default_rng(3).normal(size=(5, DIM))
    cosines = queries @ rows.T / np.linalg.norm(queries, axis=1, keepdims=True)
    names = [*pq.read_table(files[0]).to_pylist(), *pq.read_table(names_path(files[1])).to_pylist()]
    for found, scores in zip(gallery.search(torch.from_numpy(queries), 7), cosines, strict=True):
        order = np.argsort(-scores)[:7]
        assert [match.row for match in found] == order.tolist()
        assert np.allclose([match.score for match in found], scores[order], atol=1e-6)
        for match in found:
            wanted = names[match.row]
            assert match.place == (wanted["path"], wanted["offset"], wanted["size"])
            assert (match.identity, match.label) == (wanted["identity"], wanted["label"])
            assert match.source == int(match.row >= 40)
            assert (match.landmarks is None) == (wanted["landmarks"] is None)


def test_entries_are_checked_once_not_for_each_match(tmp_path, files, monkeypatch):
    monkeypatch.setattr(segment, "_BATCH_ROWS", 16)
    gallery = build_gallery(files, tmp_path / "gallery", quiet=True)
    entries, checked = gallery.segments[0]._entries, []

    def watched(number):
        batch = entries.get_batch(number)
        return SimpleNamespace(validate=lambda full: checked.append((number, full)), slice=batch.slice)

    gallery.segments[0]._entries = SimpleNamespace(get_batch=watched)
    for _ in range(2):
        assert len(gallery.search(torch.ones(1, DIM), 57)[0]) == 57
    assert sorted(checked) == [(number, True) for number in range(4)]


def test_a_gallery_of_fewer_rows_gives_all_of_them(tmp_path, files):
    gallery = build_gallery(files[1:], tmp_path / "gallery", quiet=True)
    (found,) = gallery.search(torch.ones(1, DIM), 100)
    assert sorted(match.row for match in found) == list(range(len(gallery)))


@pytest.mark.parametrize(("value", "what"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "zero")])
def test_embeddings_that_cannot_be_compared_are_refused_with_file_and_row(tmp_path, value, what):
    embed(tmp_path / "out.npy", Numbers())
    array = np.load(tmp_path / "out.npy")
    array[33] = value
    np.save(tmp_path / "out.npy", array)
    with pytest.raises(UserError, match=rf"out\.npy: row 33, pictures/039: its embedding is {what}"):
        build_gallery([tmp_path / "out.npy"], tmp_path / "gallery", quiet=True)
    assert not list(tmp_path.glob("*gallery*"))


def test_embeddings_of_two_models_or_made_differently_do_not_go_into_one_gallery(tmp_path, files):
    embed(tmp_path / "other.npy", Numbers(), model=model("b" * 64))
    with pytest.raises(UserError, match=r"first\.parquet and .*other\.npy were not made .* way: model\.sha256 was"):
        build_gallery([files[0], tmp_path / "other.npy"], tmp_path / "gallery")
    embed(tmp_path / "upright.npy", Numbers(), flip=False)
    with pytest.raises(UserError, match="flip was True, is False"):
        build_gallery([files[0], tmp_path / "upright.npy"], tmp_path / "gallery")


def test_galleries_that_would_be_empty_or_hold_pictures_twice_or_are_there_already_are_refused(tmp_path, files):
    with pytest.raises(UserError, match="would be empty"):
        build_gallery([], tmp_path / "gallery")
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(files[0]).slice(0, 0), empty)
    with pytest.raises(UserError, match=r"would be empty: no row in .*empty\.parquet"):
        build_gallery([empty], tmp_path / "gallery")
    with pytest.raises(UserError, match="named twice"):
        build_gallery([files[0], files[0].parent / ".." / files[0].parent.name / files[0].name], tmp_path / "gallery")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        build_gallery(files, tmp_path / "there")


def test_a_full_disk_leaves_no_gallery(tmp_path, files, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dist_train.runtime.written.os.fsync", full)
    with pytest.raises(WorkError, match="cannot be written: No space left on device"):
        build_gallery(files, tmp_path / "gallery", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_queries_that_do_not_fit_are_refused(tmp_path, files):
    gallery = build_gallery(files, tmp_path / "gallery", quiet=True)
    with pytest.raises(UserError, match=r"queries \[1, 7\]: gallery .* holds embeddings of 6 numbers"):
        gallery.search(torch.ones(1, 7), 1)
    with pytest.raises(UserError, match="zero or not finite"):
        gallery.search(torch.full((1, DIM), torch.nan), 1)
    with pytest.raises(UserError, match="k=0"):
        gallery.search(torch.ones(1, DIM), 0)


def test_a_damaged_gallery_is_named(tmp_path, files):
    with pytest.raises(UserError, match="no gallery there; make one with `headcount search build"):
        Gallery(tmp_path / "none")
    built = tmp_path / "gallery"
    build_gallery(files, built, quiet=True)
    for name, damage in (
        ("gallery.json", b"{}"),
        ("embeddings.npy", (built / "embeddings.npy").read_bytes()[:500]),
        ("entries.arrow", (built / "entries.arrow").read_bytes()[:500]),
    ):
        copy = tmp_path / name
        shutil.copytree(built, copy)
        (copy / name).write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            Gallery(copy)
    body = json.loads((built / "gallery.json").read_text())
    (built / "gallery.json").write_text(json.dumps(body | {"version": 2}))
    with pytest.raises(UserError, match="gallery: version 2, expected 1; build it again"):
        Gallery(built)
    (built / "gallery.json").write_text(json.dumps(body | {"sources": [True]}))
    with pytest.raises(UserError, match="damaged: AttributeError"):
        Gallery(built)
    (built / "gallery.json").write_text(json.dumps(body | {"rows": 56}))
    with pytest.raises(UserError, match=r"57 entries and embeddings \[57, 6\], expected \[56, 6\]\)?; build it again"):
        Gallery(built)


def test_a_row_that_is_not_finite_is_found_by_the_search_and_hides_no_other(tmp_path, files):
    gallery = build_gallery(files, tmp_path / "gallery", quiet=True).directory
    rows = np.load(gallery / "embeddings.npy", mmap_mode="r+")
    rows[20] = np.nan
    rows.flush()
    with pytest.raises(WorkError, match=r"row 20 of embeddings\.npy is not finite"):
        Gallery(gallery).search(torch.ones(2, DIM), 3)


def described(table, **changed):
    """A table with another description; what is None is missing there."""
    body = json.loads(table.schema.metadata[b"headcount"]) | changed
    body = {key: value for key, value in body.items() if value is not None}
    return table.replace_schema_metadata({b"headcount": json.dumps(body).encode()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.drop_columns(["score"]), "column score is missing or of another type"),
        (lambda table: table.drop_columns(["embedding"]), "column embedding is missing or of another type"),
        (lambda table: table.append_column("label", table["label"]), "column label is missing or of another type"),
        (lambda table: table.replace_schema_metadata({b"headcount": b"[" * 100_000}), "its description is damaged"),
        (
            lambda table: table.replace_schema_metadata({b"headcount": b'{"embedding_dim": 4}'}),
            "description is damaged",
        ),
        (lambda table: described(table, embedding_dim=1 << 31), "embedding_dim 2147483648, expected 1 to 2147483647"),
        (lambda table: described(table, embedding_dim=-1), "embedding_dim -1, expected 1 to"),
        (lambda table: described(table, flip=None), r"its description is damaged \(KeyError\)"),
    ],
)
def test_tables_of_embeddings_that_others_wrote_are_refused_in_one_line(tmp_path, damage, message):
    path = tmp_path / "e.parquet"
    embed(path, Numbers(path="/first"))
    pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(UserError, match=message) as caught:
        build_gallery([path], tmp_path / "gallery", quiet=True)
    assert "\n" not in str(caught.value)
