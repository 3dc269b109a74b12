"""Sets of every kind that a recipe names: figures equal those of `headcount eval`, and absent sets are refused."""

import json
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from dist_train.config import load_config
from dist_train.errors import UserError
from dist_train.evaluate.config import EvaluateConfig
from dist_train.evaluate.kinds import KINDS
from dist_train.evaluate.suite import check_sets
from dist_train.train.build import open_training
from dist_train.train.finish import finish_run
from launch.cli import run
from tests.evaluate.faces import write_role_set
from tests.evaluate.test_ijb import write_ijb
from tests.launch.recipes import write_recipe
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.test_training import ranks_of_test


def trained(rank, world_size, path):
    """Two steps and the evaluation at the end, as a run makes them."""
    config = load_config(path)
    config.run_dir.mkdir(exist_ok=True)
    with closing(open_training(config, ranks_of_test(rank, world_size))) as loop:
        loop.fit()
        return loop.lost + finish_run(config, loop.outcome(), loop.ranks, loop.trackers, 0.0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_recipe_with_ijb_and_distractors_gives_the_figures_of_eval(tmp_path, monkeypatch, world_size):
    write_set(tmp_path / "train")
    write_ijb(tmp_path / "IJBB")
    write_role_set(tmp_path / "people", size=32)
    write_role_set(tmp_path / "strangers", identities=7, size=32, seed=5)
    evaluate = {
        "ijb": [str(tmp_path / "IJBB")],
        "distractors": [{"set": str(tmp_path / "people"), "strangers": str(tmp_path / "strangers")}],
        "all_pairs": [str(tmp_path / "people")],
    }
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        tmp_path / "train",
        tmp_path / "run",
        train__steps=2,
        train__micro_batch_size=24,
        export__onnx=False,
        **{f"evaluate__{key}": value for key, value in evaluate.items()},
    )
    assert run_ranks(world_size, trained, recipe) == [[]] * world_size
    (tmp_path / "run" / "config.yaml").write_text(recipe.read_text())

    figures = tmp_path / "figures.json"
    sets = ["-s", str(tmp_path / "IJBB"), "-s", str(tmp_path / "people")]
    words = [*sets, "--distractors", str(tmp_path / "strangers"), "--json", str(figures), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["headcount", "eval", str(tmp_path / "run"), *words])
    assert run() == 0
    (alone,) = json.loads(figures.read_text())
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    logged = {key: value for line in lines for key, value in line.items() if key.startswith("evaluate/")}
    for far, tar in alone["ijb"][0]["tar_at_far"].items():
        assert logged[f"evaluate/ijbb/tar_at_far_{float(far):g}"] == pytest.approx(tar, abs=1e-6)
    for searched in alone["ijb"][0]["identification"]:
        assert logged[f"evaluate/{searched['set']}/rank1"] == pytest.approx(searched["rank1"], abs=1e-6)
    for count, share in alone["distractors"][0]["rank1"].items():
        assert logged[f"evaluate/people + strangers/rank1_in_{count}"] == pytest.approx(share, abs=1e-6)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["rank1_among_distractors"]) == {"10", "21"}
    # Of 594 pairs of two identities: those rates that the rule of three lets it carry.
    assert {f"evaluate/people/fnmr_at_fmr_{fmr}" for fmr in ("0.1", "0.01")} < logged.keys()
    assert set(summary["fnmr_at_fmr"]) == {"0.1", "0.01"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rank-1: people + strangers" in page
    assert "DET: ijbb" in page
    assert "Operating points: people" in page


def test_sets_of_every_kind_are_looked_for_before_training(tmp_path):
    people = write_role_set(tmp_path / "people")
    for section, words in (
        ({"verification": [tmp_path / "none.bin"]}, "none.bin: no such file"),
        ({"identification": [tmp_path / "none"]}, "none"),
        ({"ijb": [people]}, "people: no IJB set"),
        ({"distractors": [{"set": people, "strangers": tmp_path / "none"}]}, "none"),
    ):
        with pytest.raises(UserError, match=words):
            check_sets(EvaluateConfig.model_validate(section))
    root = write_ijb(tmp_path / "IJBB")
    check_sets(EvaluateConfig(ijb=(root,)))
    with pytest.raises(UserError, match="both called 'ijbb' in figures"):
        check_sets(EvaluateConfig(ijb=(root, write_ijb(tmp_path / "again"))))
    (root / "meta" / "ijbb_template_pair_label.txt").unlink()
    with pytest.raises(UserError, match=r"meta/ijbb_template_pair_label\.txt of ijbb is not there"):
        check_sets(EvaluateConfig(ijb=(root,)))


def test_entries_that_a_recipe_may_have_together_have_figures_of_their_own(tmp_path):
    own = [{"set": tmp_path / "mine", "by": "norm", "fmr": fmr} for fmr in (0.001, 0.01)]
    section = EvaluateConfig.model_validate({"groups": own, "quality": own})
    rate = SimpleNamespace(gini=0.1)
    both = {"fmr_differential": rate, "fnmr_differential": rate, "pauc": 0.2}
    for kind in KINDS:
        results = [SimpleNamespace(name="mine", by=each.by, fmr=each.fmr, **both) for each in section.groups]
        if kind.name in ("groups", "quality"):
            one, other = (set(kind.figures(each)) for each in results)
            assert one
            assert not one & other, kind.name
    tables = [{"set": tmp_path / "mine", "by": f"{folder}/q.csv"} for folder in "ab"]
    with pytest.raises(ValueError, match=r"both called 'mine by q\.csv at 0\.001' in figures; rename a directory or"):
        EvaluateConfig.model_validate({"quality": tables})
