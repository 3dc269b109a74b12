"""Fusion: weights as scikit-learn finds them, gains that are there and not others, files that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dist_train.embed.pictures import Picture, Place
from dist_train.embed.table import FORMAT_VERSION, embedding_table, with_description
from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.fusion import evaluate_fusion, fused, halves, learned_weights, logistic_slopes
from dist_train.evaluate.joining import join
from tests.evaluate.simulated import collapsed, simulated
from tests.launch.recipes import headcount_here
from tests.ranks import ranks_here, run_ranks


def view(seed, spread, name, identities=40):
    """One model's or modality's embeddings of the same 640 pictures."""
    rows, labels, _ = simulated(seed, identities=identities, pictures=4, spread=spread, common=0)
    keys = [f"people/{number:06d}" for number in range(len(rows))]
    return EmbeddedSet(name, Path(f"{name}.parquet"), rows, torch.ones(len(rows)), labels, keys, [None] * len(rows))


def test_slopes_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    same = random.random(2000) < 0.2
    scores = random.normal(size=(2000, 3)) + same[:, None] * [1.0, 0.4, 0.0]
    expected = LogisticRegression(class_weight="balanced", C=1 / (1e-4 * 2000), tol=1e-10, max_iter=1000)
    np.testing.assert_allclose(logistic_slopes(scores, same), expected.fit(scores, same).coef_[0], rtol=1e-4, atol=1e-5)


def test_separable_scores_have_finite_slopes():
    scores = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [0.9, 1.0]])
    slopes = logistic_slopes(scores, np.array([False, False, True, True]))
    assert np.isfinite(slopes).all()
    assert (slopes > 0).all()


def test_a_fused_cosine_is_the_weighted_sum_of_the_cosines():
    one, other = view(0, 1.0, "a"), view(1, 1.0, "b")
    rows = fused([one, other], np.array([0.7, 0.3])).features.double()
    expected = 0.7 * one.features.double() @ one.features.double().T + 0.3 * other.features.double() @ (
        other.features.double().T
    )
    np.testing.assert_allclose((rows @ rows.T).numpy(), expected.numpy(), atol=1e-6)


def test_halves_share_no_identity_and_hold_every_labelled_picture():
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 4, 4, -1, 5])
    first, second = halves(labels)
    assert sorted([*first, *second]) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert not set(labels[first].tolist()) & set(labels[second].tolist())


def judged_on_rank(rank, world_size):
    return evaluate_fusion([view(0, 1.2, "face"), view(1, 1.2, "gait")], 0.01, ranks_here(rank, world_size))[
        0
    ].summary()


def test_two_views_as_good_as_each_other_are_better_fused_and_any_ranks_say_the_same():
    found = judged_on_rank(0, 1)
    assert found["better_than_each_alone"]
    assert all(0.35 < each["weight"] < 0.65 for each in found["alone"])
    assert (found["calibration_identities"], found["identities"], found["pictures"]) == (80, 80, 320)
    assert run_ranks(2, judged_on_rank) == [found] * 2


def test_a_view_that_knows_nothing_gains_nothing_and_it_is_said():
    good, noise = view(0, 1.2, "face"), view(1, 1.2, "noise")
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(noise.features.shape, generator=generator), dim=1)
    result, judged = evaluate_fusion([good, replace(noise, features=rows)], 0.01)
    assert not result.better
    assert result.alone[1].beaten
    assert "not significantly better than face alone" in result.notes[-1]
    assert [each.name for each in judged] == ["face", "noise", "face + noise"]
    weights = learned_weights([good, replace(good, features=-rows)], halves(good.labels)[0])
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0.9


def test_rounding_gives_models_of_one_embedding_no_credit():
    one = view(0, 1.2, "a")
    files = [replace(one, name=str(seed), features=collapsed(640, seed=seed)) for seed in range(4)]
    result, _ = evaluate_fusion(files, 0.01)
    assert {result.fnmr, *(each.fnmr for each in result.alone)} == {1}


def test_a_rate_that_the_half_does_not_carry_is_noted():
    result, _ = evaluate_fusion([view(0, 1.2, "face"), view(1, 1.2, "gait")], 1e-5)
    assert "FMR 1e-05 needs 300,000 impostor pairs or more, and there are 50,560: take a larger --fmr" in result.notes


def test_rows_are_joined_by_key_and_those_of_one_file_alone_are_named_and_counted():
    one, other = view(0, 1.0, "a"), view(1, 1.0, "b")
    shuffled = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))[:-7].tolist()
    names = [other.keys[row] for row in shuffled]
    part = replace(other, features=other.features[shuffled], norms=other.norms[shuffled], keys=names)
    part = replace(part, labels=1000 - other.labels[shuffled], roles=[None] * len(names))
    (left, right), notes = join([one, part])
    assert left.keys == right.keys
    assert len(left) == len(one) - 7
    assert torch.equal(right.features[5], other.features[other.keys.index(right.keys[5])])
    assert len(notes) == 1
    assert notes[0].startswith("7 pictures are not in b.parquet and left out: people/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: replace(one, keys=[f"x{key}" for key in one.keys]), "no picture is in all of"),
        (lambda one: replace(one, keys=[one.keys[1], *one.keys[1:]]), "people/000001 is there twice"),
        (lambda one: replace(one, labels=one.labels.roll(1)), "have other labels: pictures people/000000 and people/"),
        (lambda one: replace(one, labels=one.labels // 2), "show one identity in b.parquet, and not in a.parquet"),
        (lambda one: replace(one, labels=one.labels.where(one.labels > 0, -1)), "and none in b.parquet"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(change, message):
    one, other = view(0, 1.0, "a"), view(1, 1.0, "b")
    with pytest.raises(UserError, match=message):
        join([one, change(other)])


def write_embeddings(path, one, sha256="0"):
    import pyarrow.parquet as pq

    places = [Place(key) for key in one.keys]
    pictures = [Picture(np.empty((0, 0, 3), np.uint8), None, int(label)) for label in one.labels]
    made = embedding_table(places, pictures, one.norms.numpy(), one.features.numpy())
    description = {"version": FORMAT_VERSION, "embedding_dim": one.features.shape[1], "source": {"path": "people"}}
    description |= {"model": {"name": one.name, "sha256": sha256}, "image_size": 32, "flip": False}
    pq.write_table(made.cast(with_description(made.schema, description)), path)
    return path


def test_eval_judges_files_of_embeddings_alone_and_fused(tmp_path):
    files = [write_embeddings(tmp_path / f"{name}.parquet", view(seed, 1.2, name)) for seed, name in enumerate("ab")]
    options = ["--fuse", files[0], "--fuse", files[1], "--fmr", "0.01", "--json", tmp_path / "f.json"]
    done = headcount_here("eval", *options, "--report", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "the fusion is significantly better than each file alone" in done.stdout
    bodies = json.loads((tmp_path / "f.json").read_text())
    assert [body["model"] for body in bodies] == ["a", "b", "a + b"]
    points = [{point["fmr"]: point["fnmr"] for point in body["all_pairs"][0]["operating_points"]} for body in bodies]
    assert bodies[2]["fusion"]["fnmr"] == points[2][0.01] < min(points[0][0.01], points[1][0.01])
    assert "Fusion" in (tmp_path / "r.html").read_text()
    alone = headcount_here("eval", "--fuse", files[0])
    assert (alone.returncode, "needs two files" in alone.stderr) == (2, True)
    none = headcount_here("eval", "-s", tmp_path)
    assert (none.returncode, "no model to evaluate" in none.stderr) == (2, True)
