"""Fused galleries: cosines as the evaluation fused them, better than each model alone, and what does not belong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_train.embed.fused_gallery import build_fused_gallery
from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.errors import UserError
from dist_train.evaluate.fuse_cli import evaluate_files
from dist_train.evaluate.fusion import halves
from dist_train.evaluate.fusion_file import FusedModel, described, fused_digest, read_fusion
from dist_train.evaluate.models import Model
from dist_train.runtime.digest import sha256_of
from launch.embed.decision import decide
from launch.embed.views import FusedModels, views_for
from tests.embed.models import DIM, SIZE, write_model, write_photos
from tests.embed.test_cli import run
from tests.evaluate.figures import figures, point, write_figures
from tests.evaluate.test_fusion import view, write_embeddings


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Two views of 640 pictures, and the figures of their fusion."""
    home = tmp_path_factory.mktemp("learned")
    sets = [view(seed, 1.2, name) for seed, name in enumerate(("face", "gait"))]
    files = [
        write_embeddings(home / f"{each.name}.parquet", each, sha256=str(seed) * 64) for seed, each in enumerate(sets)
    ]
    evaluate_files(files, 0.01, home / "fusion.json", None)
    return home, files, sets


@pytest.fixture(scope="module")
def built(learned):
    home, files, _ = learned
    fused, notes = build_fused_gallery(files[::-1], home / "fused", read_fusion(home / "fusion.json"))
    assert notes == []
    return fused


def test_scores_of_a_search_are_the_weighted_sums_that_the_evaluation_judged(learned, built):
    home, _, sets = learned
    body = json.loads((home / "fusion.json").read_text())[-1]
    weights = [each["weight"] for each in body["fusion"]["alone"]]
    rows = [each.features.double().numpy() for each in sets]
    expected = sum(weight * row[:5] @ row.T for weight, row in zip(weights, rows, strict=True))
    query = torch.cat([w**0.5 * each.features[:5] for w, each in zip(weights, sets, strict=True)], dim=1)
    for one, found in zip(expected, Gallery(built.directory).search(query, len(sets[0])), strict=True):
        np.testing.assert_allclose([match.score for match in found], np.sort(one)[::-1], atol=1e-6)
        assert found[0].place.path == sets[0].keys[int(one.argmax())]
    decision = decide(built, FusedModels(built), 0.01, None)
    measured = {each["fmr"]: each["threshold"] for each in body["all_pairs"][0]["operating_points"]}
    assert decision.threshold == measured[0.01]
    assert decide(built, FusedModels(built), 0.01, home / "fusion.json").threshold == measured[0.01]


def test_a_search_in_the_fused_gallery_finds_more_than_in_each_models_own(learned, built):
    home, files, sets = learned
    held_out = halves(sets[0].labels)[1]

    def right(gallery, rows):
        """Share of held-out pictures whose nearest other picture is of their identity."""
        found = gallery.search(torch.from_numpy(rows[held_out]), 2)
        return np.mean([pair[1].label == sets[0].labels[row] for row, pair in zip(held_out, found, strict=True)])

    alone = [
        right(build_gallery([path], home / f"alone-{path.stem}", quiet=True), each.features.numpy())
        for path, each in zip(files, sets, strict=True)
    ]
    stored = np.load(built.directory / "embeddings.npy")
    assert right(built, stored) > max(alone) + 0.05


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ((0,), {}, "1 file of embeddings for a fusion of 2 models"),
        ((0, 0), {}, "none of .* is by model gait"),
        ((0, 1), {"flip": True}, "not made as the embeddings that the fusion was learned from: flip"),
        ((0, 1), {"embedding_dim": 9}, "not made as .*: embedding_dim"),
    ],
)
def test_files_of_other_models_are_refused(learned, tmp_path, files, changes, message):
    home, paths, _ = learned
    fusion = read_fusion(home / "fusion.json")
    parts = tuple(replace(part, **changes) for part in fusion.parts)
    with pytest.raises(UserError, match=message):
        build_fused_gallery([paths[each] for each in files], tmp_path / "g", fusion._replace(parts=parts))
    assert not (tmp_path / "g").exists()


def test_a_file_that_holds_no_fusion_is_refused(learned, tmp_path):
    home, _, _ = learned
    good = json.loads((home / "fusion.json").read_text())
    for change, message in (
        (lambda bodies: bodies[:1], "no fusions in it"),
        (lambda bodies: bodies + bodies[-1:], "2 fusions in it"),
        (lambda bodies: bodies[0], "expected figures by"),
        (lambda bodies: [{"fusion": {"parts": [{"name": "a"}]}}], "is missing"),
        (lambda bodies: [{"fusion": {"parts": 3}}], "expected figures by"),
    ):
        (tmp_path / "f.json").write_text(json.dumps(change(good)))
        with pytest.raises(UserError, match=message):
            read_fusion(tmp_path / "f.json")
    good[-1]["fusion"]["parts"][0]["weight"] = 0.9
    (tmp_path / "f.json").write_text(json.dumps(good))
    with pytest.raises(UserError, match="weights of the models sum to"):
        read_fusion(tmp_path / "f.json")


def test_a_photo_is_looked_for_by_all_models_of_a_gallery(tmp_path):
    write_photos(tmp_path / "photos")
    models = [write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", cells=8)]
    files = [tmp_path / "a.parquet", tmp_path / "b.npy"]
    for model, out in zip(models, files, strict=True):
        run("embed", model, tmp_path / "photos", out)
    parts = [
        FusedModel(model.stem, sha256_of(model), dim, SIZE, True, weight)
        for model, dim, weight in zip(models, (DIM, 4 * DIM), (0.75, 0.25), strict=True)
    ]
    body = figures(fused_digest(parts), [point(1e-2, 0.99999)])
    fusion = write_figures(tmp_path / "f.json", body | {"fusion": {"parts": described(parts)}})
    told = run("search", "build", *files, tmp_path / "gallery", "--fusion", fusion)
    assert "13 rows of 240 numbers, fused: a 0.750, b 0.250" in told
    asked = tmp_path / "photos" / "person 1" / "2.png"
    query = ("search", "query", tmp_path / "gallery", asked)
    both = ("--model", models[1], "--model", models[0], "--out", tmp_path / "m.png")
    told = run(*query, *both, "--fmr", "0.01").splitlines()
    assert told[0] == f"  1  1.0000  match     person 1  {asked}"
    assert "no match" in told[1]
    # The first --model is given a photo of somebody else, who is not what the second finds.
    told = run(*query, tmp_path / "photos" / "alone.png", *both)
    assert told.splitlines()[0].split()[1] < "1.0000"
    with pytest.raises(UserError, match=r"embedded with 2 models \(a, b\), --model names 1"):
        run(*query, "--model", models[0])
    with pytest.raises(UserError, match="3 photos for 2 models"):
        run(*query, asked, asked, *both)
    with pytest.raises(UserError, match="that it was embedded with: b"):
        run(*query, "--model", models[0], "--model", models[0])
    with pytest.raises(UserError, match="--min-quality leaves rows of one model out"):
        run("search", "build", *files, tmp_path / "g", "--fusion", fusion, "--min-quality", "norm=1")


def test_models_are_found_in_any_order_and_each_keeps_its_photo(built, tmp_path):
    models = [Model(name, lambda images: images, 32, 32, lambda sha=sha: sha * 64) for name, sha in ("b1", "a0")]
    views = views_for(built, models, [tmp_path / "gait.png", tmp_path / "face.png"])
    assert [(each.model.name, each.photo.name) for each in views] == [("a", "face.png"), ("b", "gait.png")]
