"""A whole run under each way of replicating the backbone, with evaluation on the way, checkpoint, export and report."""

import json

import pytest

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import read_best
from dist_train.track.trackers import read_metrics
from tests.evaluate.faces import write_role_set
from tests.launch.recipes import QUICK, headcount_forked, write_recipe
from tests.replica import whole_runs
from tests.sets import write_pairs, write_set

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run directories by strategy, and all that two ranks said: the same two went through the runs in turn."""
    path = tmp_path_factory.mktemp("runs")
    write_set(path / "set")
    write_pairs(path / "pairs.bin")
    # 33 pictures: two ranks make one and two forward passes of 16.
    write_role_set(path / "people", identities=11, views=3, size=32)
    recipes = [
        write_recipe(
            path / f"{strategy}.yaml",
            path / "set",
            path / strategy,
            **QUICK,
            train__steps=4,
            train__strategy=strategy,
            checkpoint__every_steps=2,
            evaluate__verification=[str(path / "pairs.bin")],
            evaluate__identification=[str(path / "people")],
            evaluate__every_steps=2,
            evaluate__batch_size=16,
            export__onnx=True,
        )
        for strategy in STRATEGIES
    ]
    done = headcount_forked(*recipes, ranks=2, main=whole_runs.run)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return {strategy: path / strategy for strategy in STRATEGIES}, said


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_whole_run_of_two_ranks_comes_to_its_report(runs, strategy):
    run = runs[0][strategy]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["ranks"], summary["steps"]) == (2, 4)
    assert summary["onnx_max_abs_diff"] < 1e-3
    assert {"verification_accuracy", "rank1"} <= summary.keys()
    judged = {line["step"]: line for line in read_metrics(run) if "evaluate/people/rank1" in line}
    assert sorted(judged) == [2, 4]
    assert summary["rank1"] == pytest.approx(judged[4]["evaluate/people/rank1"], abs=1e-5)
    assert read_best(run)[0] in (2, 4)
    _, config, progress = load_backbone(run)
    assert (config.train.strategy, progress.step) == (strategy, 4)
    assert "rank-1" in (run / "report.html").read_text()


def test_every_strategy_comes_to_the_losses_of_ddp(runs):
    curves = {
        strategy: [line["loss"] for line in read_metrics(run) if "loss" in line] for strategy, run in runs[0].items()
    }
    assert len(curves["ddp"]) == 4
    for strategy in STRATEGIES:
        assert curves[strategy] == pytest.approx(curves["ddp"], abs=1e-3)


def test_nothing_that_libraries_say_about_themselves_is_in_the_log(runs):
    said = runs[1]
    assert said.count("report: ") == len(STRATEGIES)
    for word in ("Warning", "deprecated", "[INFO]", "DeepSpeed", "CUDA_HOME"):
        assert word not in said, said
