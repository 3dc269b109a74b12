"""Error against discarded pairs: against brute force, planted qualities, tables of qualities, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.quality import best_area, discard, judge_quality
from dist_train.evaluate.quality_set import quality_of
from tests.evaluate.models import write_color_model
from tests.evaluate.own_sets import write_own_set
from tests.evaluate.simulated import collapsed, simulated
from tests.launch.recipes import headcount_here
from tests.ranks import ranks_here, run_ranks


def plain_error(missed, quality, share):
    """FNMR of pairs left when as many whole classes of equal pairs as fit in a share are discarded, lowest first."""
    gone = np.zeros(len(quality), bool)
    for value in np.unique(quality):
        more = gone | (quality == value)
        if more.sum() > share * len(quality) + 1e-9 or more.all():
            break
        gone = more
    return missed[~gone].mean()


@pytest.mark.parametrize("levels", [40, 100_000])
def test_error_at_every_discard_is_that_of_brute_force_on_5000_pairs(levels):
    random = np.random.default_rng(0)
    quality = random.integers(0, levels, 5000).astype(float)
    missed = random.random(5000) < 0.3 / (1 + quality / levels)
    stairs = discard(missed, quality)
    order = np.sort(np.unique(quality))
    places = range(len(order)) if levels == 40 else range(0, len(order), 97)
    for place in places:
        left = quality >= order[place]
        assert stairs.discarded[place] == pytest.approx(1 - left.mean())
        assert stairs.error[place] == pytest.approx(missed[left].mean())
    shares = (np.arange(3000) + 0.5) / 10_000
    if levels == 40:
        expected = np.mean([plain_error(missed, quality, share) for share in shares[::50]]) * 0.3
        assert stairs.area() == pytest.approx(expected, rel=2e-3)
    assert stairs.area() == pytest.approx(np.mean([stairs.at(share) for share in shares]) * 0.3, rel=1e-3)


def planted(seed, blind=False):
    """A set of which one picture in twenty is spoiled, the norms say which, or know nothing."""
    rows, labels, _ = simulated(seed, identities=25, pictures=4, spread=0.5)
    random = np.random.default_rng(seed)
    spoiled = torch.from_numpy(random.random(len(rows)) < 0.05)
    noise = torch.from_numpy(random.normal(size=rows.shape).astype(np.float32)) / np.sqrt(rows.shape[1])
    rows = torch.nn.functional.normalize(torch.where(spoiled[:, None], rows * 0.3 + noise, rows), dim=1)
    norms = torch.from_numpy(random.random(len(rows)).astype(np.float32)) + (0 if blind else 2 * ~spoiled)
    keys = [f"{number:06d}" for number in range(len(rows))]
    return EmbeddedSet("planted", Path("sets/planted"), rows, norms.float(), labels, keys, [None] * len(rows))


def test_a_quality_that_knows_the_spoiled_pictures_has_a_third_of_the_area_of_random():
    result = quality_of(planted(0), "norm", 1e-3)
    assert 0.03 < result.fnmr < 0.3
    assert result.best_share <= result.share <= 0.35
    assert result.share_95[0] <= result.share <= result.share_95[1] < 0.5
    assert not result.notes


def test_a_quality_that_knows_nothing_is_called_no_better_than_random():
    said = [quality_of(planted(seed, blind=True), "norm", 1e-3).notes for seed in range(10)]
    assert sum("better than random" in "".join(notes) or "worse than random" in "".join(notes) for notes in said) >= 9
    upside_down = planted(0)
    notes = quality_of(EmbeddedSet(**{**upside_down.__dict__, "norms": -upside_down.norms}), "norm", 1e-3).notes
    assert "worse than random" in notes[0]


@pytest.mark.parametrize("seed", range(4))
def test_rounding_gives_a_model_of_one_embedding_no_credit(seed):
    one = replace(planted(0), features=collapsed(400, seed=seed))
    assert quality_of(one, "norm", 1e-3).fnmr == 1


def test_a_rate_that_the_set_does_not_carry_is_noted():
    told = "FMR 1e-05 needs 300,000 impostor pairs or more, and there are 79,200: take a larger --fmr"
    assert quality_of(planted(0), "norm", 1e-5).summary()["notes"][0] == told


def judged_on_rank(rank, world_size):
    return quality_of(planted(0), "norm", 1e-3, ranks_here(rank, world_size)).summary()


def test_three_ranks_judge_a_quality_as_one_does():
    assert run_ranks(3, judged_on_rank) == [judged_on_rank(0, 1)] * 3


def test_the_area_of_perfect_knowledge_is_the_sum_over_its_steps():
    expected = sum(max(20 - gone, 0) / (100 - gone) for gone in range(30)) / 100
    assert best_area(20, 100) == pytest.approx(expected)
    assert best_area(100, 100) == pytest.approx(0.3), "all fail"


def test_without_errors_no_quality_is_judged():
    zeros = np.zeros(6)
    shared = {"threshold": 0.3, "pictures": 4, "title": ("set", "norm", 1e-3)}
    result = judge_quality(zeros.astype(bool), zeros, zeros.astype(int), **shared)
    assert "no genuine pair fails" in result.notes[0]
    assert "same quality" in result.notes[1]
    assert json.loads(json.dumps(result.summary()))["pauc"] == 0


def table(path, rows):
    pq.write_table(pa.table({"key": [key for key, _ in rows], "quality": [value for _, value in rows]}), path)
    return str(path)


def test_a_table_gives_the_same_as_the_norms_that_are_in_it(tmp_path):
    one = planted(0)
    rows = [*zip(one.keys, one.norms.tolist(), strict=True), ("of another set", 3.0)]
    as_parquet = quality_of(one, table(tmp_path / "q.parquet", rows), 1e-3)
    (tmp_path / "q.csv").write_text("note,key,quality\n" + "".join(f"x,{key},{value}\n" for key, value in rows))
    as_csv = quality_of(one, str(tmp_path / "q.csv"), 1e-3)
    assert as_parquet.share == as_csv.share == quality_of(one, "norm", 1e-3).share
    assert as_csv.by == "q.csv"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: rows[7:], "7 of 400 pictures are without a row: 000000, 000001, 000002, 000003, 000004, ..."),
        (lambda rows: [*rows[:-1], (rows[-1][0], float("nan"))], "1 rows are no finite number: 000399"),
        (lambda rows: [*rows, rows[3]], "1 keys are there twice, the first is 000003"),
        (lambda rows: [(key, None) for key, _ in rows], "column quality"),
        (lambda rows: [(key, "good") for key, _ in rows], "expected the columns key and quality"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_keys(tmp_path, rows, message):
    one = planted(0)
    path = table(tmp_path / "q.parquet", rows(list(zip(one.keys, one.norms.tolist(), strict=True))))
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as raised:
        quality_of(one, path, 1e-3)
    assert "q.parquet" in str(raised.value)


def test_other_files_and_scores_that_are_not_there_are_refused(tmp_path):
    for by, message in (("sharpness", "expected norm, score, or a"), (str(tmp_path / "no.csv"), "no such file")):
        with pytest.raises(UserError, match=message):
            quality_of(planted(0), by, 1e-3)
    scored = EmbeddedSet(**{**planted(0).__dict__, "columns": {"score": [None, float("nan"), *[0.5] * 398]}})
    with pytest.raises(UserError, match="2 of 400 pictures are without a score that is a number: 000000, 000001"):
        quality_of(scored, "score", 1e-3)


def test_eval_judges_groups_and_qualities_of_a_set(tmp_path):
    own = write_own_set(tmp_path / "own")
    model = write_color_model(tmp_path / "model.onnx", size=32)
    options = ["--by", "sex", "--quality", "norm", "--quality", "score", "--fmr", "0.05", "--fmr", "0.1"]
    files = ["--json", tmp_path / "f.json", "--report", tmp_path / "r.html"]
    done = headcount_here("eval", model, "-s", own, *options, *files, "--input-range", "-1..1", "--no-flip")
    assert done.returncode == 0, done.stderr
    assert "own · model at FMR 0.05: sex = f" in done.stdout
    assert "pAUC of random" in done.stdout
    (model,) = json.loads((tmp_path / "f.json").read_text())
    assert [(found["by"], found["fmr"]) for found in model["groups"]] == [("sex", 0.05), ("sex", 0.1)]
    assert [group["pictures"] for group in model["groups"][0]["groups"]] == [16, 16]
    pairs = [group["fmr"]["pairs"] for group in model["groups"][0]["groups"]]
    assert pairs == [96, 96]  # 16 * 15 / 2 - 4 * 6
    assert [found["by"] for found in model["quality"]] == ["norm", "score"] * 2
    page = (tmp_path / "r.html").read_text()
    assert "Discard: own at FMR 0.05" in page
    assert "FNMR by sex: own · model at 0.1" in page


def test_columns_and_qualities_that_are_not_there_are_refused(tmp_path):
    own = write_own_set(tmp_path / "own", people=2, views=2)
    model = write_color_model(tmp_path / "model.onnx", size=32)
    for option, message in (
        (["--by", "age"], "'age' is neither a field"),
        (["--quality", "no.csv"], "no.csv: no such file"),
    ):
        done = headcount_here("eval", model, "-s", own, *option, "--input-range", "-1..1", "--no-flip")
        assert done.returncode == 2
        assert message in done.stderr
