"""Pre-training without labels: a step against the plain formula, on several ranks, resumed, refused, and its result."""

import logging

import numpy as np
import pytest
import torch
import yaml

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.data.batch import Batch
from dist_train.errors import UserError, WorkError
from dist_train.track.trackers import read_metrics
from dist_train.train.finish import finish_run
from tests.contrast.runs import BATCH, VIEWS, contrast_recipe, norms, opened, plain_step, state_of
from tests.launch.recipes import headcount_here, write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import losses


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def one_step(rank, world_size, recipe):
    """Loss, gradients and this rank's batch of the first step; then the losses of the first two steps."""
    loop = opened(recipe, ranks=ranks_here(rank, world_size))
    program, batch = loop.program, next(loop.loader)
    fields = {name: field.clone() for name, field in batch._asdict().items() if field is not None}
    program.enter(0)
    program.begin()
    parts = batch.chunk(loop.accumulation)
    loss = sum(float(program.micro_step(part, last=part is parts[-1])) for part in parts)
    gradients = {name: weight.grad.numpy().copy() for name, weight in program.network.named_parameters()}
    program.discard()
    curve = [float(loop.train_step(Batch(**fields))), *losses(loop, 1)]
    found = {
        "loss": loss,
        "gradients": gradients,
        "batch": [field.numpy() for field in fields.values()],
        "curve": curve,
    }
    loop.close()
    return found


@pytest.mark.parametrize(("queue", "several"), [(0, (2, 3)), (40, (2,))])
def test_loss_and_gradient_of_a_step_equal_the_formula_in_float64_on_any_number_of_ranks(
    tmp_path, tiny_set, queue, several
):
    recipes = [contrast_recipe(tmp_path / str(n), tiny_set, contrast={"queue": queue}) for n in range(4)]
    loop = opened(recipes[0])
    kept = loop.program.queue.keys.clone() if queue else None
    alone = one_step(0, 1, recipes[1])
    batch = Batch(*(torch.from_numpy(field) for field in alone["batch"]))
    loss, gradients = plain_step(loop.program, batch, seed=0, step=0, temperature=0.2, queue=kept)
    loop.close()
    for found in (alone, *(each for count in several for each in run_ranks(count, one_step, recipes[count]))):
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["curve"] == pytest.approx(alone["curve"], rel=1e-3)
        for name, expected in gradients.items():
            # Three normalisations over 4 pictures each make much of the last bits of float32.
            most = 1e-3 * np.abs(expected).max() + 1e-5
            np.testing.assert_allclose(found["gradients"][name], expected, rtol=0, atol=most, err_msg=name)


def cut_and_whole(rank, world_size, folder, data):
    """States after four steps with checkpoints every two: of an unbroken run, and of one that was opened anew."""
    ranks = ranks_here(rank, world_size)
    states, curves = [], []
    for name in ("whole", "cut"):
        recipe = contrast_recipe(folder / f"{name}-{rank}", data, f"../{name}", contrast={"queue": 40})
        loop = opened(recipe, ranks=ranks)
        curve = losses(loop, 2)
        loop.save()
        loop.checkpointer.wait()
        ranks.barrier()
        if name == "cut":
            loop.close()
            loop = opened(recipe, committed_checkpoints(folder / name)[-1], ranks)
        curve += losses(loop, 2)
        loop.program.replica.average_buffers()  # as a checkpoint does
        states.append(state_of(loop))
        curves.append(curve)
        loop.close()
    return *states, curves


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_goes_on_bit_for_bit_with_momentum_encoder_queue_and_optimizer(tmp_path, tiny_set, world_size):
    for found in run_ranks(world_size, cut_and_whole, tmp_path, tiny_set):
        whole, cut, curves = found
        assert curves[0] == curves[1]
        assert whole.keys() == cut.keys()
        assert {name.split(".")[0] for name in whole} == {
            *("backbone", "projector", "predictor", "momentum_encoder", "optimizer", "queue")
        }
        different = [name for name, value in whole.items() if not np.array_equal(value, cut[name])]
        assert different == []
    if world_size == 2:  # two steps on two ranks, two steps on one
        older = committed_checkpoints(tmp_path / "cut")[0]
        recipe = contrast_recipe(tmp_path / "alone", tiny_set, contrast={"queue": 40})
        loop = opened(recipe, older)
        assert losses(loop, 2) == pytest.approx(curves[0][2:], rel=1e-4)
        loop.close()


def test_a_refused_step_leaves_no_trace_and_the_next_one_goes_through(tmp_path, tiny_set):
    recipe = contrast_recipe(tmp_path, tiny_set, contrast={"queue": 40}, train__max_bad_steps=2)
    loop = opened(recipe)
    losses(loop, 1)
    before = state_of(loop)
    batch = next(loop.loader)
    batch.images[10] = float("nan")
    assert np.isnan(float(loop.train_step(batch)))
    after = state_of(loop)
    assert [name for name, value in before.items() if not np.array_equal(value, after[name])] == []
    assert np.isfinite(losses(loop, 1)).all()
    for number in range(2):
        batch = next(loop.loader)
        batch.other[3] = float("inf")
        if number == 0:
            loop.train_step(batch)
            continue
        with pytest.raises(WorkError, match="rank 0: pictures are not finite: samples at positions"):
            loop.train_step(batch)
    loop.close()


def test_loss_that_is_lost_in_the_query_network_is_refused_too(tmp_path, tiny_set):
    loop = opened(contrast_recipe(tmp_path, tiny_set))
    with torch.no_grad():
        loop.program.network.predictor[3].weight[0, 0] = float("nan")  # keys are sound
    before = state_of(loop)
    assert np.isnan(losses(loop, 1)[0])
    after = state_of(loop)
    equal = [np.array_equal(value, after[name], equal_nan=True) for name, value in before.items()]
    assert all(equal)
    assert loop.program.diagnose(next(loop.loader).chunk(6)) == "weight predictor.3.weight is not finite"
    loop.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_set):
    """A run of 16 steps with its results, and the folder that it lies in."""
    folder = tmp_path_factory.mktemp("finished")
    options = {
        "train__steps": 16,
        "train__micro_batch_size": 12,
        "evaluate__knn": [str(tiny_set)],
        "evaluate__knn_neighbours": 5,
    }
    options |= {"optimizer__lr": 0.05, "checkpoint__every_steps": 100, "evaluate__every_steps": 8}
    loop = opened(contrast_recipe(folder, tiny_set, **options))
    assert loop.fit()
    assert finish_run(loop.config, loop.outcome(), loop.ranks, loop.trackers, 0.0) == []
    loop.close()
    return folder


def test_a_run_learns_and_shows_the_accuracy_of_neighbours_on_the_way(finished):
    lines = read_metrics(finished / "run")
    trained = [line for line in lines if "loss" in line]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert 0 <= trained[0]["contrast/accuracy"] <= 1
    assert trained[0]["contrast/momentum"] == 0.99
    assert 0.9999 < trained[-1]["contrast/momentum"] < 1
    assert [line["step"] for line in lines if "evaluate/set/knn_accuracy" in line] == [8, 16, 16]


def test_the_result_is_the_plain_backbone_for_eval_and_as_a_start(finished, tiny_set, tmp_path, caplog):
    assert "backbone.stem.0.weight" in read_tensors(committed_checkpoints(finished / "run")[-1])
    backbone, config, _ = load_backbone(finished / "run")
    assert config.head is None
    done = headcount_here("eval", finished / "run", "--knn", tiny_set, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_set, tmp_path / "run", start__backbone=str(finished / "run"))
    with caplog.at_level(logging.INFO):
        loop = opened(recipe)
    tensors = backbone.state_dict()
    assert f"{len(tensors)} of {len(tensors)} tensors" in caplog.text
    assert "left out" not in caplog.text
    assert all(torch.equal(value, tensors[name]) for name, value in loop.program.backbone.state_dict().items())
    loop.close()


def test_the_momentum_encoder_keeps_no_statistics_and_no_gradient(tmp_path, tiny_set):
    loop = opened(contrast_recipe(tmp_path, tiny_set))
    slow = loop.program.momentum_encoder
    before = [norm.running_mean.clone() for norm in norms(slow) if norm.running_mean is not None]
    losses(loop, 1)
    after = [norm.running_mean for norm in norms(slow) if norm.running_mean is not None]
    assert before
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(weight.grad is None and not weight.requires_grad for weight in slow.parameters())
    loop.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"scale": 16.0}}, "head: program contrast knows no identities"),
        ({"data.images_per_class": 2}, "data.images_per_class: program contrast reads no labels"),
        ({"data.augment": {"flip": 0.5}}, "data.augment: program contrast learns by what two views"),
        ({"data.augment": {"flip": 0.0, "grey": 1.0}}, "data.augment: program contrast learns by what two views"),
        ({"train.strategy": "zero1"}, "program: contrast knows only train.strategy=ddp"),
        ({"train.ema_decay": 0.99}, "program: contrast knows only train.ema_decay=null"),
        ({"start": {"head": "elsewhere"}}, "start.head: program contrast has no head to start"),
        ({"start": {"freeze": ["norms"]}}, "start.freeze: program contrast lets only the stem .* remove norms"),
        ({"start": {"freeze": ["stem"], "freeze_steps": 3}}, "for all steps; remove freeze_steps"),
        ({"contrast.final_momentum": 0.5}, "contrast: final_momentum 0.5 is below momentum 0.99"),
        ({"contrast.temperature": 0}, "contrast.temperature: input should be greater than 0"),
        (
            {"phases": [{"at": 2, "start": {"freeze": ["stem"]}}]},
            "phases.0.start: program contrast lets parts",
        ),
        ({"objectives": {"supcon": {}}}, "objectives: program contrast has one loss of its own"),
        ({"program": "contrasts"}, "program: input should be 'recognition' or 'contrast'"),
    ],
)
def test_what_pre_training_cannot_give_is_refused_by_its_key(tmp_path, changes, message):
    recipe = contrast_recipe(tmp_path, tmp_path / "none")
    with pytest.raises(UserError, match=message):
        load_config(
            recipe, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in changes.items()]
        )


@pytest.mark.parametrize("queue", [BATCH - 1, 81])
def test_a_queue_below_a_batch_or_above_the_set_is_refused(tmp_path, tiny_set, queue):
    with pytest.raises(UserError, match=f"contrast.queue {queue}: expected 0 for none, or from the 24 .* to the 80"):
        opened(contrast_recipe(tmp_path, tiny_set, contrast={"queue": queue}))


def test_a_set_smaller_than_a_batch_is_refused(tmp_path, tiny_set):
    with pytest.raises(UserError, match="80"):
        opened(contrast_recipe(tmp_path, tiny_set, train__global_batch_size=120))


def test_a_recipe_without_labels_passes_the_check_and_keeps_its_own_dump(tmp_path, tiny_set):
    recipe = contrast_recipe(tmp_path, tiny_set, contrast={"queue": 40})
    done = headcount_here("train", recipe, "--check")
    assert done.returncode == 0, done.stderr
    assert "dry step on the CPU in float32: tiny, contrast, sgd" in done.stdout
    assert VIEWS.items() <= load_config(recipe).data.augment.model_dump().items()
