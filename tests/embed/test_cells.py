"""Galleries in cells: what is found in the cells that are read, and what says how many these are."""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dist_train.embed import cells
from dist_train.embed.cells import Cells, write_cells
from dist_train.embed.changes import append_rows, remove_rows
from dist_train.embed.compact import Rows
from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.errors import UserError
from dist_train.evaluate.search import nearest
from launch.cli import app
from tests.embed.standin import Numbers, embed

PEOPLE, EACH, DIM = 300, 5, 24


@pytest.fixture(scope="module")
def exact():
    """Unit rows of people, `EACH` near each other, in a random order."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(PEOPLE, 1, DIM)) + 0.3 * random.normal(size=(PEOPLE, EACH, DIM))
    rows = random.permutation(rows.reshape(-1, DIM)).astype(np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.fixture(scope="module", autouse=True)
def taught_torch():
    """As pytorch-metric-learning leaves faiss, which then takes arrays of no derived type."""
    importlib.import_module("faiss.contrib.torch_utils")


@pytest.fixture
def stored(exact, tmp_path):
    return tmp_path, write_cells(tmp_path, exact.numpy(), quiet=True)


def test_every_row_lies_once_in_the_cell_whose_center_is_nearest(stored, exact):
    home, described = stored
    centers, starts, rows = (np.load(home / f"cell_{name}.npy") for name in ("centers", "starts", "rows"))
    assert len(centers) == described["count"] == len(exact) // 39
    assert sorted(rows) == list(range(len(exact)))
    cell = np.repeat(np.arange(len(centers)), np.diff(starts))
    scores = exact.numpy()[rows] @ centers.T
    assert np.allclose(scores[np.arange(len(rows)), cell], scores.max(axis=1), atol=1e-6)
    assert np.allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-5)


def test_probes_are_the_fewest_cells_that_hold_the_nearest_others(stored, exact):
    _, described = stored
    found = {}
    for probes in (described["probes"], described["probes"] - 1):
        gallery = Cells(stored[0], described | {"probes": max(1, probes)}, exact)
        near = gallery.nearest(exact, 2)[1]
        wanted = nearest(exact, exact, 2)[1]
        found[probes] = float((near == wanted).all(dim=1).double().mean())
    assert 1 < described["probes"] < described["count"]
    assert found[described["probes"]] >= cells.FOUND > found[described["probes"] - 1]
    assert found[described["probes"]] == pytest.approx(described["found"], abs=0.005)


@pytest.mark.parametrize("candidates", [1, 128])
def test_all_cells_together_find_what_the_exact_search_finds(stored, exact, candidates, monkeypatch):
    monkeypatch.setattr(cells, "_CANDIDATES", candidates)
    monkeypatch.setattr(cells, "_MORE", 2)
    home, described = stored
    gallery = Cells(home, described | {"probes": described["count"]}, exact)
    queries = torch.nn.functional.normalize(torch.randn(20, DIM, generator=torch.Generator().manual_seed(1)))
    for k in (1, 7):
        scores, rows = gallery.nearest(queries, k)
        wanted, numbers = nearest(queries, exact, k)
        assert rows.equal(numbers)
        assert torch.allclose(scores, wanted, atol=1e-6)


def test_more_cells_are_read_until_there_are_k_rows_that_are_not_removed(stored, exact):
    home, described = stored
    gallery = Cells(home, described | {"probes": 1}, exact)
    removed = torch.ones(len(exact), dtype=torch.bool)
    kept = torch.arange(3, len(exact), 500)
    removed[kept] = False
    scores, rows = gallery.nearest(exact[:4], len(kept), removed)
    wanted, numbers = nearest(exact[:4], exact, len(kept), removed=removed)
    assert rows.equal(numbers)
    assert torch.allclose(scores, wanted, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_small_gallery_is_one_cell(exact, tmp_path, count):
    described = write_cells(tmp_path, exact[:count].numpy(), quiet=True)
    assert (described["count"], described["probes"], described["found"]) == (1, 1, 1.0)
    assert int(Cells(tmp_path, described, exact[:count]).nearest(exact[:1], 1)[1]) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    home = tmp_path_factory.mktemp("embeddings")
    embed(home / "old.npy", Numbers(count=600))
    embed(home / "new.npy", Numbers(count=700, first=600))
    return home


def _build(files, folder, *options):
    return CliRunner().invoke(app, ["search", "build", str(files / "old.npy"), str(folder / "gallery"), *options])


def test_the_command_builds_one_that_is_searched_appended_to_and_removed_from(files, tmp_path):
    assert _build(files, tmp_path, "--faiss").exit_code == 0
    exact = build_gallery([files / "old.npy", files / "new.npy"], tmp_path / "exact", quiet=True)
    gallery, count = append_rows(tmp_path / "gallery", [files / "new.npy"])
    assert [segment.kind for segment in gallery.segments] == [Rows.int8, Rows.int8]
    queries = exact.segments[0].exact[:: len(exact) // 50]
    agree = [
        found[0].place == wanted[0].place
        for found, wanted in zip(gallery.search(queries, 1), exact.search(queries, 1), strict=True)
    ]
    assert np.mean(agree) > 0.9  # a row's own cell is not always the nearest
    first = gallery.search(queries[:1], 1)[0][0]
    remove_rows(tmp_path / "gallery", pictures=[first.place.path])
    assert Gallery(tmp_path / "gallery").search(queries[:1], 1)[0][0].place != first.place
    assert count == 100 - sum(n % 7 == 3 for n in range(600, 700))


@pytest.mark.parametrize("other", [["--rows", "int8"], ["--fusion", "fusion.json"]])
def test_cells_with_other_kinds_of_rows_are_refused(files, tmp_path, other):
    result = _build(files, tmp_path, "--faiss", *other)
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"--faiss with {other[0]}")
    assert not (tmp_path / "gallery").exists()


def test_without_faiss_nothing_is_begun(files, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"search build --faiss: needs faiss.*headcount\[faiss\]"):
        build_gallery([files / "old.npy"], tmp_path / "gallery", quiet=True, rows=Rows.cells)
    assert list(tmp_path.iterdir()) == []


def _changed(name, change):
    def damage(home):
        path = home / f"cell_{name}.npy"
        np.save(path, change(np.load(path)))

    return damage


def _described(**values):
    def damage(home):
        path = home / "gallery.json"
        body = json.loads(path.read_text())
        body["cells"] |= values
        path.write_text(json.dumps(body))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _changed("starts", lambda a: a[::-1].copy()),
        _changed("starts", lambda a: np.append(a[:-1], a[-1] + 1)),
        _changed("starts", lambda a: a[:-1]),
        _changed("rows", lambda a: a.astype(np.int32)),
        _changed("values", lambda a: a[1:]),
        _changed("centers", lambda a: a[:, 1:]),
        _changed("scales", lambda a: a.astype(np.float64)),
        _changed("rows", lambda a: a + 1),
        _changed("rows", lambda a: a - 1),
        lambda home: (home / "cell_rows.npy").unlink(),
        _described(probes=0),
        _described(probes=1 << 40),
        _described(count=-1),
        _described(error=float("nan")),
        _described(count="many"),
    ],
)
def test_a_damaged_gallery_in_cells_is_refused_by_name(files, tmp_path, damage):
    build_gallery([files / "old.npy"], tmp_path / "whole", quiet=True, rows=Rows.cells)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(UserError, match="damaged"):
        Gallery(tmp_path / "damaged").search(torch.ones(1, 6), 500)
