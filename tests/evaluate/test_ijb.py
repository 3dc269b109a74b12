"""IJB's protocols on a small set in its file layout, against the plain formulas in float64."""

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from dist_train.errors import UserError, WorkError
from dist_train.evaluate import ijb
from dist_train.evaluate.ijb import (
    embed_templates,
    evaluate_ijb,
    judge_pairs_of_templates,
    score_templates,
)
from dist_train.evaluate.ijb_layout import read_layout, read_pairs
from tests.evaluate.faces import colors, embed_color
from tests.ranks import ranks_here, run_ranks

TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
SUBJECTS, TEMPLATES, SIDE = 6, 18, 112


def write_ijb(root, kind="ijbb"):
    """Three templates a subject; a template has one to three media of one to three pictures, of one colour each."""
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    rng = np.random.default_rng(0)
    base = colors(SUBJECTS, seed=1)
    faces, members = [], []
    for template in range(TEMPLATES):
        for medium in range(1 + template % 3):
            for _ in range(1 + (template + medium) % 3):
                name = f"{len(faces)}.png"
                color = np.clip(base[template % SUBJECTS] + rng.integers(-60, 61, 3), 0, 255)
                picture = np.full((SIDE, SIDE, 3), color[::-1], dtype=np.uint8)
                cv2.imwrite(str(root / "loose_crop" / name), picture)
                points = " ".join(f"{v}" for point in TEMPLATE for v in point)
                faces.append(f"{name} {points} {rng.uniform(0.3, 1):.4f}")
                members.append(f"{name} {100 + 7 * template} {medium}")
    rng.shuffle(members)
    pairs = [(a, b) for a in range(TEMPLATES) for b in range(a)]
    ids = [f"{100 + 7 * a} {100 + 7 * b} {int(a % SUBJECTS == b % SUBJECTS)}" for a, b in pairs]
    meta = root / "meta"
    (meta / f"{kind}_name_5pts_score.txt").write_text("\n".join(faces) + "\n")
    (meta / f"{kind}_face_tid_mid.txt").write_text("\n".join(members) + "\n")
    (meta / f"{kind}_template_pair_label.txt").write_text("\n".join(ids) + "\n")
    lists = {"gallery_S1": range(0, 3), "gallery_S2": range(3, 6), "probe_mixed": range(6, TEMPLATES)}
    for name, templates in lists.items():
        lines = [f"{100 + 7 * t},{t % SUBJECTS},a.jpg" for t in templates for _ in range(2)]
        (meta / f"{kind}_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "\n".join(lines) + "\n")
    return root


def plain_templates(root, kind="ijbb", weighing="score"):
    """The formula, picture by picture: [T, D] float64 by template id."""
    scores = {line.split()[0]: float(line.split()[11]) for line in lines(root, f"{kind}_name_5pts_score.txt")}
    media: dict[int, dict[str, list[np.ndarray]]] = {}
    for line in lines(root, f"{kind}_face_tid_mid.txt"):
        name, template, medium = line.split()
        picture = cv2.imread(str(root / "loose_crop" / name))[:, :, ::-1].copy()
        images = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 127.5 - 1
        # The alignment of points that are in place already changes a picture of one colour at most at its border.
        feature = (embed_color(images.float()) + embed_color(images.flip(3).float()))[0].double().numpy()
        weight = {"sum": 1 / np.linalg.norm(feature), "norm": 1, "score": scores[name]}[weighing]
        media.setdefault(int(template), {}).setdefault(medium, []).append(feature * weight)
    sums = [sum(np.mean(pictures, axis=0) for pictures in media[t].values()) for t in sorted(media)]
    return np.stack([total / np.linalg.norm(total) for total in sums])


def lines(root, name):
    return (root / "meta" / name).read_text().splitlines()


def test_templates_follow_the_formula_whatever_the_batches(tmp_path):
    layout = read_layout(write_ijb(tmp_path / "set"))
    plain = plain_templates(tmp_path / "set")
    for batch in (1, 7, 1000):
        features = embed_templates(embed_color, layout, SIDE, batch)
        np.testing.assert_allclose(features.numpy(), plain, atol=2e-2)  # the black border of the alignment
    alone, batched = (embed_templates(embed_color, layout, SIDE, batch) for batch in (1, 1000))
    np.testing.assert_allclose(alone.numpy(), batched.numpy(), atol=1e-6)


def test_templates_weigh_pictures_all_the_same_or_by_the_length_of_their_feature_on_request(tmp_path):
    root = write_ijb(tmp_path / "set")
    layout = read_layout(root, scored=False)
    plain = {weighing: plain_templates(root, weighing=weighing) for weighing in ("sum", "norm", "score")}
    for weighing, other in (("sum", "norm"), ("norm", "score")):
        found = embed_templates(embed_color, layout, SIDE, 7, unit=weighing == "sum").numpy()
        np.testing.assert_allclose(found, plain[weighing], atol=2e-2)
        assert np.abs(plain[weighing] - plain[other]).max() > 4e-2


def test_tar_at_far_is_that_of_scikit_learn_over_the_same_scores(tmp_path):
    layout = read_layout(write_ijb(tmp_path / "set"))
    pairs = read_pairs(layout)
    left, right, same = pairs
    features = embed_templates(embed_color, layout, SIDE, 16)
    result = judge_pairs_of_templates("ijbb", features, pairs)
    scores = (features.double()[left] * features.double()[right]).sum(dim=1).numpy()
    np.testing.assert_allclose(score_templates(features, left, right), scores, atol=1e-6)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    for wanted in (1e-2, 1e-1):
        assert result.tar_at_far[wanted].tar == pytest.approx(tar[far <= wanted].max())
    assert (result.templates, result.pairs, result.positives) == (TEMPLATES, 153, int(same.sum()))
    assert not result.tar_at_far[1e-6].resolved, "135 pairs of two subjects cannot tell a rate of one in a million"


def test_searching_both_galleries_ranks_mates_and_counts_strangers(tmp_path):
    result = evaluate_ijb(embed_color, write_ijb(tmp_path / "set"), SIDE, 32)
    features = torch.from_numpy(plain_templates(tmp_path / "set"))
    assert [each.name for each in result.identification] == ["ijbb S1", "ijbb S2"]
    for each, gallery in zip(result.identification, (range(0, 3), range(3, 6)), strict=True):
        probes = [t for t in range(6, TEMPLATES) if t % SUBJECTS in gallery]
        best = (features[probes] @ features[list(gallery)].T).argmax(dim=1)
        hits = sum(gallery[int(b)] == t % SUBJECTS for t, b in zip(probes, best, strict=True))
        assert each.rank1 == pytest.approx(hits / len(probes))


def test_pairs_scored_block_by_block_keep_their_order(monkeypatch):
    features = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    left, right = np.random.default_rng(0).integers(0, 40, (2, 1000), dtype=np.int32)
    expected = (features.double()[left] * features.double()[right]).sum(dim=1)
    monkeypatch.setattr(ijb, "_PAIR_BLOCK", 300)
    np.testing.assert_allclose(score_templates(features, left, right), expected, atol=1e-6)


def evaluate_on_rank(rank, world_size, root):
    return evaluate_ijb(embed_color, root, SIDE, 4, ranks_here(rank, world_size)).summary()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_find_what_one_finds(tmp_path, world_size):
    root = write_ijb(tmp_path / "set", "ijbc")
    for name in ("gallery_S1", "gallery_S2"):
        old = root / "meta" / f"ijbc_1N_{name}.csv"
        old.rename(root / "meta" / f"ijbc_1N_{name.replace('S', 'G')}.csv")
    alone = evaluate_on_rank(0, 1, root)
    assert len(alone["identification"]) == 2
    for summary in run_ranks(world_size, evaluate_on_rank, root):
        assert summary == alone


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("name_5pts_score.txt", lambda text: text.replace("0.png ", "0.png x ", 1), "line 1: 13 words, expected 12"),
        ("name_5pts_score.txt", lambda text: text.replace("38.2946", "eye", 1), "line 1: could not convert"),
        ("face_tid_mid.txt", lambda text: text + "nobody.png 100 0\n", "picture nobody.png is not in"),
        ("face_tid_mid.txt", lambda text: text.replace(" 0\n", " first\n", 1), "invalid literal for int"),
        ("face_tid_mid.txt", lambda text: "", "it is empty"),
        ("1N_probe_mixed.csv", lambda text: text + "142,5,a.jpg\n", "template 142 is of subject 0 and 5"),
        ("template_pair_label.txt", lambda text: text + "99 100 1\n", "template 99 has no pictures"),
        ("template_pair_label.txt", lambda text: text.replace(" 0\n", " 2\n", 1), "neither 0 nor 1"),
        ("template_pair_label.txt", lambda text: text + "100 101\n", "expected lines of two templates"),
        ("1N_gallery_S1.csv", lambda text: text + "a,b,c\n", "expected template,subject"),
        ("1N_probe_mixed.csv", lambda text: text.splitlines()[0], "it lists no templates"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, file, change, message):
    path = write_ijb(tmp_path / "set") / "meta" / f"ijbb_{file}"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message) as raised:
        evaluate_ijb(embed_color, tmp_path / "set", SIDE, 32)
    assert "meta" in str(raised.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "much"])
@pytest.mark.parametrize("place", [1, 5, 11])
def test_a_landmark_or_score_that_is_no_number_is_refused_with_its_line(tmp_path, value, place):
    root = write_ijb(tmp_path / "set")
    path = root / "meta" / "ijbb_name_5pts_score.txt"
    changed = path.read_text().splitlines()
    words = changed[6].split()
    changed[6] = " ".join([*words[:place], value, *words[place + 1 :]])
    path.write_text("\n".join(changed) + "\n")
    with pytest.raises(UserError, match=rf"ijbb_name_5pts_score\.txt, line 7: .*{value}"):
        evaluate_ijb(embed_color, root, SIDE, 8)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "a/../../b.png"])
def test_a_picture_outside_of_the_set_is_refused_with_its_line(tmp_path, name):
    root = write_ijb(tmp_path / "set")
    path = root / "meta" / "ijbb_name_5pts_score.txt"
    path.write_text(path.read_text().replace("3.png", name, 1))
    with pytest.raises(UserError, match=r"line 4: picture .* is not in loose_crop"):
        read_layout(root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ijbb_name_5pts_score.txt", b"\xff\xfe 1 2", "after line 0: not UTF-8 text"),
        ("ijbb_face_tid_mid.txt", b"0.png 99999999999999999999 1\n", "line 1: .* is no id"),
        ("ijbb_1N_probe_mixed.csv", b"A,B\n1,99999999999999999999\n", "line 2: .*expected template,subject"),
        ("ijbb_1N_probe_mixed.csv", "A,B\n1,²\n".encode(), "line 2: .*expected template,subject"),
        ("ijbb_1N_probe_mixed.csv", b"A,B\n\xff", "not UTF-8 text"),
        ("ijbb_face_tid_mid.txt", b"", "it is empty"),
        ("ijbb_template_pair_label.txt", b"", "expected lines of two templates"),
        ("ijbb_1N_probe_mixed.csv", b"A,B\n", "it lists no templates"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, file, text, message):
    root = write_ijb(tmp_path / "set")
    (root / "meta" / file).write_bytes(text)
    with pytest.raises(UserError, match=message) as raised:
        evaluate_ijb(embed_color, root, SIDE, 8)
    assert file in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_gives_everything_one_embedding_has_no_tar_no_rank_and_no_tpir(tmp_path):
    result = evaluate_ijb(lambda images: torch.ones(len(images), 4), write_ijb(tmp_path / "set"), SIDE, 8)
    assert {entry.tar for entry in result.tar_at_far.values()} == {0}
    for found in result.identification:
        assert found.rank1 == 0
        assert {tpir for tpir in found.tpir_at_fpir.values() if not np.isnan(tpir)} <= {0}


def test_a_missing_picture_and_a_missing_layout_are_named(tmp_path):
    root = write_ijb(tmp_path / "set")
    (root / "loose_crop" / "3.png").write_bytes(b"no picture")
    with pytest.raises(WorkError, match=r"3\.png is missing or damaged"):
        evaluate_ijb(embed_color, root, SIDE, 32)
    with pytest.raises(UserError, match="no IJB set"):
        evaluate_ijb(embed_color, tmp_path, SIDE, 32)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    root = write_ijb(tmp_path / "set")
    with pytest.raises(WorkError, match="finite"):
        evaluate_ijb(lambda images: embed_color(images) * torch.nan, root, SIDE, 32)
