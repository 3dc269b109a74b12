"""Pictures of too low a quality: left out of embeddings and galleries, counted and named."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.embed.min_quality import MinQuality, parse_min_quality
from dist_train.errors import UserError, WorkError
from tests.embed.standin import Numbers, embed
from tests.embed.test_job import KEPT, LEFT, rejected


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Embeddings of all pictures, and the norm that half of them have."""
    out = tmp_path_factory.mktemp("embed") / "all.npy"
    embed(out, Numbers())
    rows = pq.read_table(out.with_suffix(".names.parquet"))
    return out, rows, float(np.median(rows["norm"].to_numpy()))


def test_pictures_of_a_short_embedding_are_left_out_and_listed_with_their_norm(tmp_path, everything):
    _, rows, middle = everything
    made = embed(tmp_path / "some.parquet", Numbers(), min_quality=MinQuality("norm", middle))
    some = pq.read_table(made.path)
    assert some["path"].to_pylist() == [row["path"] for row in rows.to_pylist() if row["norm"] >= middle]
    assert made.reasons == {"no face": len(LEFT), "low quality": len(KEPT) - len(some)}
    short = [row for row in rejected(made.path) if row[1] == "low quality"]
    assert {row[0] for row in short} == {row["path"] for row in rows.to_pylist() if row["norm"] < middle}
    assert short[0][2].startswith("norm ")
    assert short[0][2].endswith(f"expected at least {middle:g}")
    with pytest.raises(UserError, match="min_quality"):
        embed(made.path, Numbers())


def test_a_score_is_looked_at_before_the_network(tmp_path):
    assert embed(tmp_path / "all.parquet", Numbers(), min_quality=MinQuality("score", 0.5)).count == len(KEPT)
    with pytest.raises(WorkError, match=f"{len(KEPT)} low quality"):
        embed(tmp_path / "none.parquet", Numbers(), min_quality=MinQuality("score", 0.6))


def test_a_gallery_has_the_rows_that_are_good_enough_and_their_names(tmp_path, everything):
    out, rows, middle = everything
    made = build_gallery([out], tmp_path / "gallery", quiet=True, min_quality=MinQuality("norm", middle))
    good = np.flatnonzero(rows["norm"].to_numpy() >= middle)
    assert (len(made), made.left_out) == (len(good), len(rows) - len(good))

    queries = torch.from_numpy(np.load(out)[good])
    for row, (match,) in zip(good, Gallery(tmp_path / "gallery").search(queries, 1), strict=True):
        assert match.place.path == rows["path"][int(row)].as_py()
        assert match.score == pytest.approx(1)
    with pytest.raises(UserError, match=r"none of 40 rows has score:0\.9 or more"):
        build_gallery([out], tmp_path / "other", quiet=True, min_quality=MinQuality("score", 0.9))


@pytest.mark.parametrize("text", ["0.9", "norm", "norm:", "norm:x", "score:nan", "blur:3", "norm:inf"])
def test_a_bound_in_another_form_is_refused_with_the_forms_there_are(text):
    with pytest.raises(UserError, match="expected norm:NUMBER for the length of the network's output or score:NUMBER"):
        parse_min_quality(text)
    assert str(parse_min_quality("score:0.95")) == "score:0.95"
