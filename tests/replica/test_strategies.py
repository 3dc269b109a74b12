"""A whole run under each way of replicating the backbone, with evaluation on the way, checkpoint, export and report."""

import json

import pytest

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import read_best
from dist_train.track.trackers import read_metrics
from tests.evaluate.faces import write_role_set
from tests.launch.recipes import headcount, write_recipe
from tests.sets import write_pairs, write_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_set(path / "set")
    write_pairs(path / "pairs.bin")
    # 33 pictures: two ranks make one and two forward passes of 16.
    write_role_set(path / "people", identities=11, views=3, size=32)
    return path


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_a_whole_run_of_two_ranks_comes_to_its_report(tmp_path, data, strategy):
    recipe = write_recipe(
        tmp_path / "a.yaml",
        data / "set",
        tmp_path / "run",
        train__steps=4,
        train__strategy=strategy,
        checkpoint__every_steps=2,
        evaluate__verification=[str(data / "pairs.bin")],
        evaluate__identification=[str(data / "people")],
        evaluate__every_steps=2,
        evaluate__batch_size=16,
        export__onnx=True,
    )
    done = headcount("launch", "local", recipe, "--ranks", 2)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["ranks"], summary["steps"]) == (2, 4)
    assert summary["onnx_max_abs_diff"] < 1e-3
    assert {"verification_accuracy", "rank1"} <= summary.keys()
    judged = {line["step"]: line for line in read_metrics(run) if "evaluate/people/rank1" in line}
    assert sorted(judged) == [2, 4]
    assert summary["rank1"] == pytest.approx(judged[4]["evaluate/people/rank1"], abs=1e-5)
    assert read_best(run)[0] in (2, 4)
    assert load_backbone(run)[2].step == 4
    assert "rank-1" in (run / "report.html").read_text()
    # Nothing that libraries say about themselves is in the log.
    for word in ("Warning", "deprecated", "[INFO]", "DeepSpeed", "CUDA_HOME"):
        assert word not in done.stderr + done.stdout, done.stderr
