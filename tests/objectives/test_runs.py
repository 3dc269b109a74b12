"""Runs that train by objectives: without a head by the command on two ranks, and beside one."""

import json
import shutil
import tempfile

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.evaluate.report import RunReport, write_report
from dist_train.track.trackers import read_metrics
from dist_train.train.build import open_training
from tests.launch.recipes import headcount_forked, headcount_here, write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_pairs, write_set
from tests.single import losses, trainer
from tests.train.kill_loop import differing, flat

CLASSES = 10
TERMS = {
    "objectives__triplet": {},
    "objectives__center": {"weight": 0.5},
    "objectives__sample_to_sample": {"weight": 0.1, "warmup_steps": 3, "scale": 16.0},
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path, classes=CLASSES)
    return path


@pytest.fixture(scope="module")
def headless(tmp_path_factory, tiny_set):
    """The recipe of a run without a head, by three terms on two ranks under ZeRO-1; its run directory."""
    folder = tmp_path_factory.mktemp("headless")
    write_pairs(folder / "pairs.bin")
    recipe = write_recipe(
        folder / "recipe.yaml",
        tiny_set,
        folder / "run",
        train__steps=6,
        train__global_batch_size=24,
        train__micro_batch_size=12,
        train__strategy="zero1",
        data__images_per_class=4,
        checkpoint__every_steps=2,
        checkpoint__keep=9,
        evaluate__verification=[str(folder / "pairs.bin")],
        **TERMS,
    )
    recipe.write_text(recipe.read_text().replace("head:\n  scale: 16.0\n", "head: null\n"))
    done = headcount_forked("train", recipe, ranks=2)
    assert done.returncode == 0, done.stderr
    return recipe, folder / "run"


def stored(run_dir):
    """Every tensor of the newest checkpoint by its name there."""
    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(committed_checkpoints(run_dir)[-1], file.name)
        return dict(flat(torch.load(file.name, weights_only=False)))


def loaded(rank, world_size, recipe, checkpoint):
    """The centers of a rank and the threshold's state, as a resume has them."""
    loop = open_training(load_config(recipe, ["train.micro_batch_size=null"]), ranks_here(rank, world_size), checkpoint)
    centers = loop.program.parts["center"].state_dict()["centers"].to_local().numpy().copy()
    bias = loop.program.parts["sample_to_sample"].state_dict()
    loop.close()
    return centers, {name: float(value) for name, value in bias.items()}


def test_a_run_without_a_head_goes_on_bit_for_bit_where_it_was_cut_off(headless):
    recipe, run_dir = headless
    before, lines = stored(run_dir), read_metrics(run_dir)
    shutil.rmtree(committed_checkpoints(run_dir)[-1])
    done = headcount_forked("train", recipe, "--resume", ranks=2)
    assert done.returncode == 0, done.stderr
    assert differing(before, stored(run_dir)) == []
    again = read_metrics(run_dir)
    figures = ("loss", "gradient_norm", "triplet/loss", "triplet/active", "center/loss", "sample_to_sample/threshold")
    for key in figures:
        curves = [{line["step"]: line[key] for line in each if key in line} for each in (again, lines)]
        assert curves[0] == curves[1]
        assert len(curves[0]) == 6


def test_its_report_shows_the_loss_of_each_term(headless, tmp_path):
    write_report(tmp_path / "report.html", RunReport("run", {}, read_metrics(headless[1])))
    report = (tmp_path / "report.html").read_text()
    assert all(f"Loss of {name}, without its weight" in report for name in ("triplet", "center", "sample_to_sample"))
    assert json.loads((headless[1] / "summary.json").read_text())["verification_accuracy"] > 0.5


def test_its_centers_and_threshold_load_on_three_ranks(headless):
    recipe, run_dir = headless
    whole = stored(run_dir)
    ranks = run_ranks(3, loaded, recipe, committed_checkpoints(run_dir)[-1])
    np.testing.assert_array_equal(np.concatenate([centers for centers, _ in ranks]), whole["center.centers."])
    assert whole["center.centers."].any(dim=1).sum() > CLASSES // 2
    bias = float(whole["sample_to_sample.bias."])
    assert [found for _, found in ranks] == [{"bias": bias, "steps": 6}] * 3


def test_its_backbone_is_handed_on_and_starts_a_run_with_a_head_and_its_missing_head_is_named(headless, tmp_path):
    recipe, run_dir = headless
    done = headcount_here("checkpoint", "export", run_dir, "-o", tmp_path / "weights.safetensors")
    assert done.returncode == 0, done.stderr
    done = headcount_here("checkpoint", "export", run_dir, "-o", tmp_path / "more.safetensors", "--centers")
    assert done.returncode == 2
    assert "the run has no head (head: null); leave --centers out" in done.stderr
    with_head = [f"run_dir={tmp_path / 'run'}", "head={}", "objectives.triplet.weight=0", "train.steps=1"]
    for start in (run_dir, "-o", tmp_path / "weights.safetensors"):
        done = headcount_here("train", recipe, "--check", *with_head, f"start.backbone={start}")
        assert done.returncode == 0, done.stderr
    done = headcount_here("train", recipe, "--check", *with_head, f"start.head={run_dir}")
    assert done.returncode == 2
    assert "was trained without a head (head: null); start.backbone alone can take that run" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["objectives={triplets: {}}"], "did you mean objectives.triplet?"),
        (["objectives={triplet: }"], "write {} for its defaults"),
        (["objectives={supcon: {temperature: 0}}"], "temperature"),
        (["objectives={center: {centers: head}}"], "centers: head, and head is null"),
        (["objectives={triplet: {weight: 0}}"], "head: null leaves nothing to train by"),
    ],
)
def test_objectives_that_cannot_be_are_refused_by_the_check(headless, changes, said):
    done = headcount_here("train", headless[0], "--check", *changes)
    assert done.returncode == 2
    assert said in done.stderr


def test_metric_terms_of_weight_0_change_no_bit_of_a_run_and_others_do_and_a_resume_goes_on_with_them(
    tmp_path, tiny_set
):
    curves, states = [], []
    off = {key: section | {"weight": 0.0} for key, section in TERMS.items()}
    for number, terms in enumerate([{}, off, TERMS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = trainer(folder, tiny_set, **terms)
        curves.append(losses(made, 3))
        states.append(made.program.backbone.state_dict())
        if terms == TERMS:  # a checkpoint at step 3, and three steps more
            made.save()
            made.checkpointer.wait()
            curves.append(losses(made, 3))
        made.close()
    assert curves[0] == curves[1] != curves[2]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    made = trainer(folder, tiny_set, checkpoint=committed_checkpoints(folder / "run")[-1], **TERMS)
    assert losses(made, 3) == curves[3]
    made.close()


def test_terms_and_an_average_that_join_a_run_under_way_begin_at_that_step_as_a_warning_says(
    tmp_path, tiny_set, caplog
):
    before = trainer(tmp_path, tiny_set)
    losses(before, 3)
    before.save()
    before.checkpointer.wait()
    before.close()
    (checkpoint,) = committed_checkpoints(tmp_path / "run")
    joined = trainer(tmp_path, tiny_set, checkpoint=checkpoint, train__ema_decay=0.5, **TERMS)
    assert {"center", "sample_to_sample", "average"} <= {
        record.args[1] for record in caplog.records if "begun anew at this step" in record.message
    }
    assert joined.step == 3
    assert np.isfinite(losses(joined, 1)).all()
    average = {
        name.removeprefix("module."): value for name, value in joined.program.parts["average"].state_dict().items()
    }
    for name, value in joined.program.backbone.state_dict().items():
        assert torch.equal(value, average[name]), name  # of one step: that of the run, not of the weights it began with
    joined.close()


def test_a_step_in_bfloat16_computes_the_terms_in_float32(tmp_path, tiny_set):
    made = trainer(tmp_path, tiny_set, train__precision="bfloat16", objectives__supcon={}, **TERMS)
    assert np.isfinite(losses(made, 2)).all()
    figures = made.program.figures()
    assert {f"{name}/loss" for name in ("triplet", "supcon", "center", "sample_to_sample")} <= figures.keys()
    made.close()
