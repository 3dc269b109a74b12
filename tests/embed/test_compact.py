"""Galleries of rows in few bits: what a search finds is what the exact rows give."""

import json
import shutil

import numpy as np
import pytest
import torch

from dist_train.embed import compact
from dist_train.embed.compact import Rows, compact_rows
from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.errors import UserError
from dist_train.evaluate.search import nearest
from tests.embed.standin import DIM, Numbers, embed

KINDS = [Rows.float16, Rows.int8]
COUNT = 600


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    home = tmp_path_factory.mktemp("embeddings")
    embed(home / "all.npy", Numbers(count=COUNT))
    return [home / "all.npy"]


@pytest.fixture(scope="module")
def galleries(files):
    home = files[0].parent
    return {kind: build_gallery(files, home / kind.value, quiet=True, rows=kind) for kind in Rows}


@pytest.mark.parametrize("kind", KINDS)
def test_no_inner_product_is_further_off_than_the_error_says(kind):
    rows = np.random.default_rng(0).normal(size=(500, 24)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values, scales, error = compact_rows(rows, kind)
    difference = rows.astype(np.float64) - values.astype(np.float64) * scales[:, None].astype(np.float64)
    lengths = np.linalg.norm(difference, axis=1)
    assert error == pytest.approx(lengths.max())
    along = difference / lengths[:, None]  # the worst query of each row
    assert np.abs((along * difference).sum(axis=1)).max() <= error + 1e-12
    assert error < {Rows.float16: 1e-3, Rows.int8: 2e-2}[kind]


@pytest.mark.parametrize("few", [True, False], ids=["few queries", "many queries"])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_are_those_of_the_exact_rows_however_few_candidates_there_are(galleries, kind, few, monkeypatch):
    monkeypatch.setattr(compact, "_MOST_NUMBERS", 1 << 24 if few else 50)
    monkeypatch.setattr(compact, "_LEAST_CANDIDATES", 1)
    monkeypatch.setattr(compact, "_MORE", 2)
    monkeypatch.setattr(compact, "_BLOCK", 64)
    asked = []
    monkeypatch.setattr(compact, "nearest", lambda q, g, k, **o: (asked.append((type(g), k)), nearest(q, g, k, **o))[1])
    queries = torch.randn(9, DIM, generator=torch.Generator().manual_seed(1))
    for k in (1, 5):
        wanted = galleries[Rows.float32].search(queries, k)
        for found, exact in zip(galleries[kind].search(queries, k), wanted, strict=True):
            assert [match.row for match in found] == [match.row for match in exact]
            assert np.allclose([match.score for match in found], [match.score for match in exact], atol=1e-6)
    assert ((compact.CompactGallery, 4) in asked) != few


@pytest.mark.skipif(not compact.integers_are_fast(), reason="the processor has no VNNI")
def test_scores_by_integer_products_are_off_by_no_more_than_is_said(galleries, monkeypatch):
    monkeypatch.setattr(compact, "_INTEGER_BLOCK", 100)
    gallery = galleries[Rows.int8].segments[0]._compact
    queries = torch.nn.functional.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(2)))
    queries[4] = torch.eye(DIM)[2]
    scores = torch.empty(5, len(gallery))
    lost = gallery._integer_scores(queries, scores)
    wanted = queries.double() @ gallery._values.double().T * gallery._scales.double()
    off = (scores.double() * gallery._scales.double() - wanted).abs().amax(dim=1)
    assert (off <= lost + 1e-6).all()
    assert lost.max() < 1e-4


def test_processors_without_fast_integers_find_the_same(galleries, monkeypatch):
    monkeypatch.setattr(compact, "integers_are_fast", lambda: False)
    monkeypatch.setattr(compact, "_LEAST_CANDIDATES", 1)
    queries = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
    wanted = galleries[Rows.float32].search(queries, 5)
    for found, exact in zip(galleries[Rows.int8].search(queries, 5), wanted, strict=True):
        assert [match.row for match in found] == [match.row for match in exact]


def test_candidates_that_prove_nothing_are_followed_by_more_and_then_by_all(galleries, monkeypatch):
    monkeypatch.setattr(compact, "_LEAST_CANDIDATES", 2)
    gallery = Gallery(galleries[Rows.int8].directory)
    gallery.segments[0]._compact._error = 1.0  # nothing is sure
    asked = []
    monkeypatch.setattr(compact, "_MOST_NUMBERS", 50)
    monkeypatch.setattr(compact, "nearest", lambda q, g, k, **o: (asked.append(k), nearest(q, g, k, **o))[1])
    queries = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
    wanted = galleries[Rows.float32].search(queries, 1)
    assert [m[0].row for m in gallery.search(queries, 1)] == [m[0].row for m in wanted]
    assert asked == [4, 32, 256, 1]


def test_compact_files_are_as_small_as_their_numbers(galleries):
    sizes = {kind: (galleries[kind].directory / "compact.npy").stat().st_size for kind in KINDS}
    numbers = len(galleries[Rows.int8]) * DIM
    assert sizes[Rows.int8] - 200 < numbers < sizes[Rows.int8] < sizes[Rows.float16] < 2 * numbers + 200
    assert not (galleries[Rows.float32].directory / "compact.npy").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("compact.npy", lambda path: path.write_bytes(path.read_bytes()[:300]), "damaged"),
        ("compact.npy", lambda path: path.unlink(), "damaged: FileNotFoundError"),
        ("compact.npy", lambda path: np.save(path, np.zeros((9, DIM), np.float32)), "expected int8"),
        ("compact.npy", lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "damaged"),
        ("scales.npy", lambda path: np.save(path, np.zeros(3, np.float32)), "scales.npy is float32"),
        ("gallery.json", {"rows": "int4", "error": 0.1}, "damaged"),
        ("gallery.json", {"rows": "int8", "error": float("nan")}, "damaged"),
        ("gallery.json", {"rows": "int8"}, "damaged"),
        ("gallery.json", ["int8"], "damaged"),
    ],
)
def test_damaged_compact_rows_are_refused(galleries, tmp_path, name, change, said):
    copy = shutil.copytree(galleries[Rows.int8].directory, tmp_path / "gallery")
    if callable(change):
        change(copy / name)
    else:
        body = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(body | {"compact": change}))
    with pytest.raises(UserError, match=said):
        Gallery(copy)
