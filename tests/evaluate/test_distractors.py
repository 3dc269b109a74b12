"""MegaFace's protocol by blocks against the plain loop over every probe, mate and distractor."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_train.data.manifest import Manifest
from dist_train.errors import UserError
from dist_train.evaluate import distractors, search
from dist_train.evaluate.distractors import (
    DistractorScores,
    Mates,
    distractor_counts,
    distractor_parts,
    evaluate_distractors,
    search_distractors,
)
from dist_train.runtime.ranks import ALONE
from tests.data.sets import write_tar
from tests.evaluate.faces import color_picture, colors, embed_color, write_role_set
from tests.evaluate.simulated import collapsed
from tests.evaluate.test_identification import unit
from tests.ranks import ranks_here, run_ranks

COUNT, LABELS = 1234, torch.arange(12).repeat_interleave(3)


def features():
    centers = unit(12, seed=1)[LABELS]
    return torch.nn.functional.normalize(centers + 0.5 * unit(36, seed=2), dim=1), unit(COUNT, seed=3)


def by_blocks(ranks=ALONE):
    pictures, strangers = features()
    parts = (strangers[numbers].split(50) for numbers in distractor_parts(COUNT, ranks))
    return search_distractors("made", Mates(pictures, LABELS, None), map(iter, parts), COUNT, ranks)


def by_loop():
    """For each ordered pair of pictures of an identity: its cosine and those of its probe with all distractors."""
    pictures, strangers = (rows.double().numpy() for rows in features())
    pairs = [(i, j) for i in range(36) for j in range(36) if i != j and LABELS[i] == LABELS[j]]
    mate = np.array([pictures[i] @ pictures[j] for i, j in pairs])
    return mate, np.stack([strangers @ pictures[i] for i, _ in pairs]), strangers @ pictures.T


@pytest.mark.parametrize("blocks", [(8192, 2048), (7, 13)])
def test_every_pair_is_searched_among_nested_random_parts_of_the_distractors(monkeypatch, blocks):
    monkeypatch.setattr(search.score_blocks, "__defaults__", blocks)
    monkeypatch.setattr(distractors, "_SPARE_SCORES", 10)
    monkeypatch.setattr(distractors, "FARS", (1e-4, 1e-3))
    found = by_blocks()
    mate, others, _ = by_loop()
    assert (found.probes, found.searches, found.distractors) == (36, 72, COUNT)
    assert list(found.rank1) == [10, 100, 1000, COUNT]
    order = np.concatenate(list(distractor_parts(COUNT, ALONE)))
    for count, share in found.rank1.items():
        assert share == pytest.approx((mate > others[:, order[:count]].max(axis=1)).mean())
    places = 1 + (others >= mate[:, None]).sum(axis=1)
    np.testing.assert_allclose(found.cmc, [(places <= k).mean() for k in range(1, 101)])
    assert 0.05 < found.rank1[COUNT] < found.rank1[10], "the problem is neither too hard nor too easy to tell"


@pytest.mark.parametrize("far", [1e-4, 1e-3])
def test_tar_counts_all_pairs_of_a_probe_and_a_distractor(monkeypatch, far):
    monkeypatch.setattr(distractors, "FARS", (1e-4, 1e-3))
    monkeypatch.setattr(distractors, "_SPARE_SCORES", 10)
    entry = by_blocks().tar_at_far[far]
    mate, _, negatives = by_loop()
    barred = np.sort(negatives.ravel())[::-1][int(far * negatives.size)]
    assert entry.negatives == negatives.size
    assert entry.tar == pytest.approx((mate > barred).mean())
    assert entry.measured_far == pytest.approx((negatives > barred).mean())


def on_ranks(rank, world_size):
    return by_blocks(ranks_here(rank, world_size)).summary()


def test_distractors_split_over_ranks_give_what_one_rank_gives():
    assert run_ranks(3, on_ranks) == [by_blocks().summary()] * 3


def test_memory_does_not_grow_with_the_distractors():
    scores = DistractorScores(unit(20), tail=30)
    for seed in range(40):
        scores.add(unit(500, seed=seed))
        assert scores._waiting <= 30 + distractors._SPARE_SCORES
    every = torch.cat([(unit(20) @ unit(500, seed=seed).T).flatten() for seed in range(40)])
    torch.testing.assert_close(scores.highest(), every.topk(30).values)


@pytest.mark.parametrize(("count", "expected"), [(3, [3]), (10, [10]), (11, [10, 11]), (1000, [10, 100, 1000])])
def test_distractors_are_counted_in_powers_of_ten(count, expected):
    assert distractor_counts(count) == expected
    parts = [list(distractor_parts(count, replace(ALONE, rank=rank, world_size=3))) for rank in range(3)]
    assert sorted(n for rank in parts for part in rank for n in part) == list(range(count))


def test_sets_with_and_without_roles_say_who_is_a_probe(tmp_path):
    strangers = write_role_set(tmp_path / "strangers", identities=7)
    plain = write_role_set(tmp_path / "plain", roles=(None, None))
    found = evaluate_distractors(embed_color, plain, strangers, 16, 5)
    assert (found.name, found.probes, found.searches, found.distractors) == ("plain + strangers", 36, 72, 21)
    found = evaluate_distractors(embed_color, write_role_set(tmp_path / "roles"), strangers, 16, 5)
    assert (found.probes, found.searches) == (24, 24)


def test_sets_that_cannot_be_searched_are_refused(tmp_path):
    strangers = write_role_set(tmp_path / "strangers", identities=2)
    mixed = write_role_set(tmp_path / "mixed", roles=("gallery", None))
    message = r"mixed: sample 0000-1 has role None in its .json; expected one of .* in all of them, or in none"
    with pytest.raises(UserError, match=message):
        evaluate_distractors(embed_color, mixed, strangers, 16, 5)
    odd = write_role_set(tmp_path / "odd", roles=(["gallery"], "probe"))
    with pytest.raises(UserError, match=r"odd: sample 0000-0 has role \['gallery'\] in its .json"):
        evaluate_distractors(embed_color, odd, strangers, 16, 5)
    alone = write_role_set(tmp_path / "alone", views=1, roles=(None, None))
    with pytest.raises(UserError, match="alone: no probe has a second picture of its identity"):
        evaluate_distractors(embed_color, alone, strangers, 16, 5)
    with pytest.raises(UserError, match="nowhere"):
        evaluate_distractors(embed_color, alone, tmp_path / "nowhere", 16, 5)


def test_a_model_that_gives_everything_one_embedding_finds_nobody(tmp_path):
    write_role_set(tmp_path / "set")
    write_role_set(tmp_path / "strangers", identities=7)
    for value in (0.0, 1.0):
        result = evaluate_distractors(
            lambda images, value=value: torch.full((len(images), 4), value),
            tmp_path / "set",
            tmp_path / "strangers",
            16,
            8,
        )
        assert set(result.rank1.values()) == {0}
        assert {entry.tar for entry in result.tar_at_far.values()} == {0}


@pytest.mark.parametrize("seed", range(4))
def test_rounding_gives_a_model_of_one_embedding_no_credit(seed):
    rows = collapsed(36 + COUNT, seed=seed)
    mates = Mates(rows[:36], LABELS, None)
    parts = (rows[36 + numbers].split(50) for numbers in distractor_parts(COUNT, ALONE))
    found = search_distractors("one", mates, map(iter, parts), COUNT)
    assert set(found.rank1.values()) == {0}
    assert not found.cmc.any()
    assert {entry.tar for entry in found.tar_at_far.values()} == {0}


def test_strangers_need_no_labels(tmp_path):
    (tmp_path / "bare").mkdir()
    samples = [[(f"{number}.png", color_picture(color))] for number, color in enumerate(colors(15, seed=9))]
    Manifest(16, 1, (write_tar(tmp_path / "bare" / "bare-000000.tar", samples),)).save(tmp_path / "bare")
    found = evaluate_distractors(embed_color, write_role_set(tmp_path / "set"), tmp_path / "bare", 16, 5)
    assert (found.searches, found.distractors) == (24, 15)
