import re
from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.bin import VerificationSet
from dist_train.evaluate.curves import roc, sort_scores, tar_at_far
from dist_train.evaluate.embeddings import Embeddings
from dist_train.evaluate.suite import Evaluation
from dist_train.evaluate.tables import ModelScores, verification_table
from dist_train.evaluate.verification import evaluate_verification, fold_accuracies, fold_tars, judge_pairs
from tests.evaluate.faces import color_picture, colors, embed_color
from tests.ranks import ranks_here, run_ranks


def distances_of(count, seed=0):
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.5
    return np.where(same, generator.normal(0.8, 0.3, count), generator.normal(1.6, 0.3, count)).clip(0, 3.99), same


@pytest.mark.parametrize("count", [10, 37, 600])
def test_ten_fold_accuracy_follows_the_protocol_step_by_step(count):
    distances, same = distances_of(count)
    thresholds = np.arange(0, 4, 0.01)
    accuracies, chosen = fold_accuracies(distances, same)
    for fold, (train, test) in enumerate(KFold(10, shuffle=False).split(distances)):
        scores = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        threshold = thresholds[int(np.argmax(scores))]
        assert chosen[fold] == pytest.approx(threshold)
        assert accuracies[fold] == pytest.approx(np.mean((distances[test] < threshold) == same[test]))


def test_tar_at_far_takes_its_threshold_from_the_other_folds():
    distances, same = distances_of(4000)
    thresholds = np.arange(0, 4, 0.001)
    found = fold_tars(distances, same, [1e-2, 1e-1])
    for far, entry in found.items():
        tars = []
        for train, test in KFold(10, shuffle=False).split(distances):
            negatives = distances[train][~same[train]]
            rates = np.array([(negatives < t).mean() for t in thresholds])
            high = int(np.argmax(rates >= far))
            low = high - 1
            threshold = np.interp(far, rates[[low, high]], thresholds[[low, high]])
            threshold = min(threshold, np.sort(negatives)[int(np.ceil(far * len(negatives)))])
            tars.append((distances[test][same[test]] < threshold).mean())
        assert entry.tar == pytest.approx(np.mean(tars), abs=1e-9)
        assert entry.measured_far == pytest.approx(far, rel=0.3)
        assert entry.resolved


def test_a_far_below_one_false_accept_is_marked_and_means_none():
    distances, same = distances_of(600)
    entry = fold_tars(distances, same, [1e-5])[1e-5]
    assert not entry.resolved
    assert entry.negatives == (~same).sum()
    nearest = distances[~same].min()
    assert entry.tar == pytest.approx((distances[same] < nearest).mean(), abs=0.02)
    assert entry.measured_far == 0 or entry.measured_far == pytest.approx(1 / entry.negatives, rel=0.5)


NOISE = np.random.default_rng(0).uniform(0, 1e-6, 200)


@pytest.mark.parametrize(
    ("distances", "tar"),
    [
        (np.zeros(200), 0),
        (np.full(200, 2.0), 0),
        (NOISE, 0.03),  # no better than chance
        (np.where(np.arange(200) % 4 < 2, 1.0, 1.0005), 0),
    ],
    ids=["all equal", "all equal and far", "nearly equal", "two values"],
)
def test_equal_distances_are_refused_together_and_give_no_tar(distances, tar):
    same = np.arange(200) % 2 == 0
    for far, entry in fold_tars(distances, same, [1e-1, 1e-2, 1e-3]).items():
        assert entry.tar <= (tar if far < 0.1 else max(tar, 0.2))
        assert entry.measured_far <= max(2 * far, 0.03)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_model_that_gives_everything_one_embedding_has_no_tar_and_no_accuracy_above_chance(value):
    result = evaluate_verification(lambda images: torch.full((len(images), 8), value), tiny_set(), 16, 7)
    assert result.accuracy <= 0.5
    assert {entry.tar for entry in result.tar_at_far.values()} == {0}


def one_kind(kind):
    return VerificationSet("single", tiny_set().images, np.full(30, kind))


@pytest.mark.parametrize(("kind", "words"), [(True, "the same identity"), (False, "different identities")])
def test_a_set_with_one_kind_of_pairs_has_neither_accuracy_nor_tar(kind, words, caplog):
    result = evaluate_verification(embed_color, one_kind(kind), 16, 7)
    assert (result.accuracy, result.accuracy_std, result.threshold, result.tar_at_far) == (None, None, None, {})
    assert f"all 30 pairs show {words}" in caplog.text
    summary = result.summary()
    assert (summary["accuracy"], summary["tar_at_far"], summary["negatives"]) == (None, None, 30 * (not kind))
    assert words in summary["notes"][0]
    table = str(verification_table([ModelScores("m", [result])]))
    assert re.search(r"^single · m +- +- ", table, flags=re.MULTILINE)
    assert f"single: all 30 pairs show {words}" in table


def test_a_set_with_one_kind_of_pairs_has_no_say_in_the_score_of_a_checkpoint():
    single, whole = (evaluate_verification(embed_color, each, 16, 7) for each in (one_kind(True), tiny_set()))
    found = Evaluation([single, whole], [])
    assert found.score == whole.accuracy
    assert "evaluate/single/accuracy" not in found.figures()


def test_pairs_listed_by_kind_are_told_of(caplog):
    dataset = tiny_set()
    order = np.argsort(~dataset.same, kind="stable")
    images = [image for i in order for image in dataset.images[2 * i : 2 * i + 2]]
    ordered = VerificationSet("ordered", images, dataset.same[order])
    result = evaluate_verification(embed_color, ordered, 16, 7)
    assert "10 of 10 folds hold one kind of pairs only" in caplog.text
    assert "list the pairs in turn" in result.notes[0]
    caplog.clear()
    assert evaluate_verification(embed_color, dataset, 16, 7).notes == ()
    assert not caplog.text


def test_embeddings_of_different_identities_that_are_nearly_the_same_are_told_of(caplog):
    def shifted(images):
        return embed_color(images) + 100

    result = evaluate_verification(shifted, tiny_set(), 16, 7)
    assert "nearly the same embedding (median cosine 1.000)" in caplog.text
    assert "--input-range" in result.notes[0]


@pytest.mark.parametrize("levels", [0, 7])
def test_the_roc_is_that_of_scikit_learn_ties_included(levels):
    distances, same = distances_of(500)
    scores = -distances if not levels else np.round(-distances * levels) / levels
    ours = roc(sort_scores(scores, same))
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.far, far, atol=1e-12)
    np.testing.assert_allclose(ours.tar, tar, atol=1e-12)
    np.testing.assert_allclose(ours.thresholds[1:], thresholds[1:])


def test_tar_at_far_of_a_curve_never_exceeds_the_demanded_far():
    distances, same = distances_of(500)
    scores = sort_scores(-distances, same)
    far_of, tar_of, _ = roc_curve(same, -distances, drop_intermediate=False)
    for far in (1e-3, 1e-2, 0.5, 1.0):
        entry = tar_at_far(scores, far)
        assert entry.tar == pytest.approx(tar_of[far_of <= far].max())
        assert entry.measured_far == pytest.approx(far_of[far_of <= far].max())
        assert entry.measured_far <= far


def test_pairs_that_score_the_same_are_accepted_together():
    same = np.array([True] * 10 + [False] * 20)
    scores = sort_scores(np.array([1.0] * 10 + [0.0] * 10 + [1.0] * 8 + [2.0] * 2), same)
    assert tar_at_far(scores, 0.49).tar == 0
    assert tar_at_far(scores, 0.5).tar == 1


def test_error_rates_of_gaussian_scores_are_those_of_the_formula():
    generator = np.random.default_rng(0)
    same = np.arange(1_100_000) < 100_000
    scores = sort_scores(generator.normal(2.5 * same).astype(np.float32), same)
    normal = NormalDist()
    for far in (1e-1, 1e-2, 1e-3, 1e-4):
        expected = 1 - normal.cdf(normal.inv_cdf(1 - far) - 2.5)
        assert tar_at_far(scores, far).tar == pytest.approx(expected, abs=4e-3 + 0.03 * (far < 1e-3))


def test_a_drawn_curve_consists_of_points_of_the_whole_one():
    scores = sort_scores(-distances_of(20000)[0], distances_of(20000)[1])
    every, few = roc(scores), roc(scores, 100)
    assert 80 < len(few.far) <= 103
    assert (few.far[0], few.tar[0], few.far[-1], few.tar[-1]) == (0, 0, 1, 1)
    assert (np.diff(few.far) >= 0).all()
    points = set(zip(every.far.tolist(), every.tar.tolist(), strict=True))
    assert points >= set(zip(few.far.tolist(), few.tar.tolist(), strict=True))


@pytest.mark.parametrize(
    ("same", "message"), [(np.ones(4, bool), "4 of 4 pairs"), (np.ones(3, bool), "4 scores for 3")]
)
def test_scores_without_both_kinds_of_pairs_are_refused(same, message):
    with pytest.raises(UserError, match=message):
        sort_scores(np.arange(4.0), same)


def tiny_set(pairs=30):
    """Same pairs: one colour and a few levels beside it; others: two colours."""
    base = colors(2 * pairs)
    images, same = [], []
    for i in range(pairs):
        equal = i % 2 == 0
        left, right = base[2 * i], np.clip(base[2 * i] + 3, 0, 255) if equal else base[2 * i + 1]
        images += [color_picture(left), color_picture(right)]
        same.append(equal)
    return VerificationSet("tiny", images, np.array(same))


def test_a_set_is_judged_by_the_sum_of_picture_and_mirror_image():
    dataset = tiny_set()

    def lopsided(images):
        # The left half alone: only the mirror image makes the sum see both.
        return images[..., :8].mean(dim=(2, 3)) + images[:, :, 0, 0]

    result = evaluate_verification(lopsided, dataset, 16, 7)
    assert result.accuracy > 0.6
    summary = result.summary()
    assert summary["pairs"] == 30
    assert summary["unresolved_fars"] == ["0.001", "0.0001", "1e-05"]
    assert set(summary["tar_at_far"]) == {"0.001", "0.0001", "1e-05"}


def on_ranks(rank, world_size):
    result = evaluate_verification(embed_color, tiny_set(), 16, 4, ranks_here(rank, world_size))
    return result.scores, result.accuracy, result.mean_norm


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_give_what_one_gives(world_size):
    alone = evaluate_verification(embed_color, tiny_set(), 16, 4)
    for scores, accuracy, norm in run_ranks(world_size, on_ranks):
        np.testing.assert_array_equal(scores, alone.scores)
        assert (accuracy, norm) == (alone.accuracy, pytest.approx(alone.mean_norm))


def broken_on_ranks(rank, world_size):
    dataset = tiny_set()
    dataset.images[-1] = b"no picture"
    try:
        evaluate_verification(embed_color, dataset, 16, 4, ranks_here(rank, world_size))
    except WorkError as error:
        return str(error)
    return "no error"


def test_a_damaged_picture_on_one_rank_is_an_error_on_all():
    messages = run_ranks(2, broken_on_ranks)
    assert messages[0] == messages[1]
    assert messages[0].startswith("verification set tiny, picture 59: cannot be decoded: 10 bytes that start with")


def test_embeddings_that_are_not_finite_name_the_picture():
    def diverged(images):
        result = embed_color(images)
        result[1] = torch.nan
        return result

    with pytest.raises(WorkError, match=r"embedding of picture 1 is not finite"):
        evaluate_verification(diverged, tiny_set(), 16, 5)


def test_a_set_that_cannot_be_judged_is_refused():
    dataset = tiny_set()
    features = Embeddings(torch.randn(60, 4), torch.ones(60))
    with pytest.raises(UserError, match="5 pairs, expected at least 10"):
        judge_pairs(VerificationSet("few", dataset.images[:10], dataset.same[:5]), features)


def test_hard_pairs_are_the_wrong_ones_worst_first():
    dataset = tiny_set()
    generator = torch.Generator().manual_seed(1)
    result = judge_pairs(dataset, Embeddings(torch.randn(60, 8, generator=generator), torch.ones(60)))
    wrong = (result.scores > result.threshold) != result.same
    assert {pair.number for pair in result.hard_pairs} <= set(np.flatnonzero(wrong))
    distance = [abs(pair.score - result.threshold) for pair in result.hard_pairs]
    assert distance == sorted(distance, reverse=True)
    assert result.hard_pairs[0].left == dataset.images[2 * result.hard_pairs[0].number]
