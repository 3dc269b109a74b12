import numpy as np
import pytest
import torch

from dist_train.errors import UserError
from dist_train.evaluate import search
from dist_train.evaluate.identification import evaluate_identification, judge_search, search_gallery, tpir_at_fpir
from dist_train.evaluate.search import nearest
from tests.evaluate.faces import embed_color, write_role_set
from tests.evaluate.simulated import collapsed
from tests.ranks import ranks_here, run_ranks


def unit(count, dim=8, seed=0):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def problem():
    """Probes of 40 identities, 30 of them enrolled, two entries each, and 25 strangers in the gallery."""
    generator = torch.Generator().manual_seed(5)
    centers = unit(40, seed=1)
    probe_labels = torch.randint(0, 40, (97,), generator=generator)
    gallery_labels = torch.cat([torch.arange(30).repeat(2), torch.full((25,), -1)])
    gallery_labels = gallery_labels[torch.randperm(85, generator=generator)]
    probes = torch.nn.functional.normalize(centers[probe_labels] + 0.3 * unit(97, seed=2), dim=1)
    entries = torch.where(gallery_labels[:, None] >= 0, centers[gallery_labels], unit(85, seed=3))
    return probes, probe_labels, torch.nn.functional.normalize(entries + 0.3 * unit(85, seed=4), dim=1), gallery_labels


def by_loop(probes, probe_labels, gallery, gallery_labels):
    mate, other, ranks = [], [], []
    for probe, label in zip(probes.double(), probe_labels, strict=True):
        scores = gallery.double() @ probe
        own = gallery_labels == label
        best = scores[own].max() if own.any() else torch.tensor(-torch.inf)
        mate.append(best)
        other.append(scores[~own].max())
        ranks.append(1 + int((scores[~own] >= best).sum()))
    return np.array(mate), np.array(other), np.array(ranks)


@pytest.mark.parametrize("blocks", [(8192, 2048), (7, 13), (1, 1)])
def test_the_search_by_blocks_is_the_plain_search(monkeypatch, blocks):
    monkeypatch.setattr(search.score_blocks, "__defaults__", blocks)
    outcome = search_gallery(*problem())
    mate, other, ranks = by_loop(*problem())
    np.testing.assert_allclose(outcome.mate, mate, atol=1e-6)
    np.testing.assert_allclose(outcome.other, other, atol=1e-6)
    np.testing.assert_array_equal(outcome.rank, ranks)


def on_ranks(rank, world_size):
    outcome = search_gallery(*problem(), ranks=ranks_here(rank, world_size))
    return outcome.mate.numpy(), outcome.other.numpy(), outcome.rank.numpy()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_gallery_split_over_ranks_gives_what_one_rank_gives(world_size):
    mate, other, ranks = by_loop(*problem())
    for found in run_ranks(world_size, on_ranks):
        for ours, expected in zip(found, (mate, other, ranks), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_model_that_gives_everything_one_embedding_gets_no_credit():
    same = torch.ones(6, 4) / 2
    outcome = search_gallery(same, torch.arange(6), same, torch.arange(6))
    assert outcome.rank.tolist() == [6] * 6


@pytest.mark.parametrize("seed", range(4))
def test_rounding_gives_a_model_of_one_embedding_no_credit(monkeypatch, seed):
    rows, labels = collapsed(300, seed=seed), torch.arange(100).repeat(3)
    for blocks in ((8192, 2048), (7, 13)):
        monkeypatch.setattr(search.score_blocks, "__defaults__", blocks)
        outcome = search_gallery(rows, labels, rows, labels)
        assert outcome.rank.tolist() == [298] * 300
        found = judge_search("one", outcome, labels, closed=True)
        assert (found.rank1, found.rank5, set(found.tpir_at_fpir.values())) == (0, 0, {0})


def test_tpir_takes_its_threshold_from_searches_without_a_mate():
    impostor = np.linspace(0, 1, 1000, endpoint=False)
    mate = np.array([0.5, 0.895, 0.905, 0.985, 0.995])
    found = tpir_at_fpir(mate, impostor, (0.1, 0.01, 1e-4))
    assert found[0.1] == pytest.approx(3 / 5)
    assert found[0.01] == pytest.approx(1 / 5)
    assert np.isnan(found[1e-4])


def test_open_and_closed_sets_differ_in_whose_searches_have_no_mate():
    _, probe_labels, _, gallery_labels = problem()
    outcome = search_gallery(*problem())
    enrolled = int((probe_labels < 30).sum())
    opened = judge_search("a", outcome, gallery_labels, closed=False)
    closed = judge_search("a", outcome, gallery_labels, closed=True)
    assert opened.probes == closed.probes == enrolled
    assert len(opened.impostor_scores) == 97 - enrolled
    assert len(closed.impostor_scores) == 97
    _, _, ranks = by_loop(*problem())
    ranks = ranks[probe_labels < 30]
    assert opened.rank1 == pytest.approx((ranks == 1).mean())
    assert opened.cmc[4] == opened.rank5 == pytest.approx((ranks <= 5).mean())
    assert opened.cmc[-1] == 1


@pytest.mark.parametrize("k", [1, 5, 85])
def test_nearest_gives_the_k_largest_inner_products(monkeypatch, k):
    monkeypatch.setattr(search.score_blocks, "__defaults__", (10, 9))
    probes, _, gallery, _ = problem()
    scores, rows = nearest(probes, gallery, k)
    expected, places = (probes @ gallery.T).topk(k, dim=1)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(rows, places)


def test_a_set_of_shards_is_identified_by_role(tmp_path):
    directory = write_role_set(tmp_path / "heldout")
    result = evaluate_identification(embed_color, directory, 16, 5)
    assert (result.name, result.probes, result.gallery, result.identities) == ("heldout", 24, 12, 12)
    assert result.rank1 > 0.9
    assert result.summary()["tpir_at_fpir"]["0.01"] is None


def test_probes_of_one_model_are_searched_in_the_gallery_of_another(tmp_path):
    directory = write_role_set(tmp_path / "heldout")
    alone = evaluate_identification(embed_color, directory, 16, 5)
    same = evaluate_identification(embed_color, directory, 16, 5, gallery_embed_fn=embed_color)
    assert same.summary() == alone.summary()
    np.testing.assert_array_equal(same.mate_scores, alone.mate_scores)
    other = evaluate_identification(embed_color, directory, 16, 5, gallery_embed_fn=lambda images: -embed_color(images))
    assert other.rank1 < alone.rank1


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("gallery", "query"), r"sample 0000-1 has role 'query' .* expected one of \('gallery', 'probe'\)"),
        (("gallery", "gallery"), "36 gallery pictures and 0 probes"),
        (("probe", "probe"), "0 gallery pictures and 36 probes"),
    ],
)
def test_a_set_without_both_roles_is_refused(tmp_path, roles, message):
    with pytest.raises(UserError, match=message):
        evaluate_identification(embed_color, write_role_set(tmp_path / "set", roles=roles), 16, 5)


def test_empty_galleries_and_labels_that_do_not_fit_are_refused():
    rows, labels = unit(4), torch.arange(4)
    with pytest.raises(UserError, match="4 probes and 0 gallery entries"):
        search_gallery(rows, labels, rows[:0], labels[:0])
    with pytest.raises(UserError, match="3 labels for 4 probes"):
        search_gallery(rows, labels[:3], rows, labels)
    with pytest.raises(UserError, match="gallery is empty"):
        nearest(rows, rows[:0], 1)
    with pytest.raises(UserError, match="k=5 of a gallery of 4"):
        nearest(rows, rows, 5)
    outcome = search_gallery(rows, labels, rows, labels + 10)
    with pytest.raises(UserError, match="no probe's identity is in the gallery"):
        judge_search("set", outcome, labels + 10, closed=True)
