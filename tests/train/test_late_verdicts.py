"""Where the host reads later whether a step was finite, the step itself knows in time."""

import numpy as np
import pytest
import torch

from dist_train.config import load_config
from dist_train.errors import WorkError
from dist_train.train.build import open_training
from tests.contrast.runs import contrast_recipe
from tests.contrast.runs import opened as opened_contrast
from tests.launch.recipes import write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import losses, trainer

LATE = "dist_train.runtime.verdict.LATE_ON"
BOTH = frozenset({"cpu", "cuda"})
SMALL = {"backbone__name": "nano", "train__micro_batch_size": 12}
COUNTED = {"head.choices", "head.steps"}  # of steps that were begun
CASES = {
    "sgd": {
        "head__margin": "adaface",
        "head__sample_rate": 0.5,
        "head__dtype": "bfloat16",
        "optimizer__clip_norm": 0.5,
    },
    "adamw": {"optimizer__name": "adamw", "head__optimizer": "adamw", "head__margin": "curricularface"},
    "float16": {"train__precision": "float16", "head__storage": "host", "head__optimizer": "rowwise_adagrad"},
    "terms": {"data__images_per_class": 6, "objectives__center": {"centers": "own"}},
    "still": {"start__freeze": ["backbone"]},
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def opened(tmp_path, tiny_set, **overrides):
    tmp_path.mkdir(exist_ok=True)
    return trainer(tmp_path, tiny_set, backbone__name="nano", train__ema_decay=0.5, train__log_every=1000, **overrides)


def state_of(loop):
    """Every tensor of a checkpoint, by name."""
    found = {}

    def look(name, value):
        if isinstance(value, torch.Tensor):
            found[name] = value.clone()
        elif isinstance(value, dict):
            for key, each in value.items():
                look(f"{name}.{key}", each)

    for name, part in loop.program.parts.items():
        look(name, part.state_dict() if hasattr(part, "state_dict") else part.snapshot().state)
    return found


def spoiled(batch):
    images = batch.images.clone()
    images[-1, 0, 0, 0] = torch.nan
    return batch._replace(images=images)


def spoil_gradient(loop):
    """The embeddings of the next step are finite, the gradient is not."""
    weight = loop.program.backbone.get_parameter(next(name for name, _ in loop.program.backbone.named_parameters()))
    hook = weight.register_hook(lambda gradient: hook.remove() or torch.full_like(gradient, torch.inf))


@pytest.mark.parametrize("name", CASES)
def test_a_late_step_that_is_refused_leaves_no_trace_and_is_counted_before_the_next_one_moves(
    tmp_path, tiny_set, monkeypatch, name
):
    at_once = losses(opened(tmp_path / "a", tiny_set, **CASES[name]), 4)
    monkeypatch.setattr(LATE, BOTH)
    loop = opened(tmp_path / "b", tiny_set, **CASES[name])
    np.testing.assert_allclose(losses(loop, 4), at_once, rtol=1e-5)
    loop.settle()
    bad = loop.bad_steps.count  # an overflow of float16, with its first scales
    for spoil in ("embeddings", "gradient")[: 1 if name == "still" else 2]:
        before, batch = state_of(loop), next(loop.loader)
        if spoil == "gradient":
            spoil_gradient(loop)
        assert loop.train_step(spoiled(batch) if spoil == "embeddings" else batch).isnan()
        assert loop.gradient_norm.isnan()
        assert loop.bad_steps.count == bad, "not yet read"
        after = state_of(loop)
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        scaled = {"optimizer.scalars.scale", "optimizer.scalars.growth"} if spoil == "gradient" else set()
        assert changed <= COUNTED | scaled
        assert ("optimizer.scalars.scale" in changed) == (spoil == "gradient" and name == "float16")
        assert loop.train_step(next(loop.loader)).isfinite()
        bad += 1
        assert loop.bad_steps.count == bad
    loop.settle()
    assert loop.bad_steps.count == bad
    loop.close()


def test_a_first_step_that_is_refused_late_is_followed_by_a_first_step(tmp_path, tiny_set, monkeypatch):
    expected = opened(tmp_path / "a", tiny_set)
    next(expected.loader)
    expected.step = 1
    expected.train_step(next(expected.loader))
    monkeypatch.setattr(LATE, BOTH)
    loop = opened(tmp_path / "b", tiny_set)
    loop.train_step(spoiled(next(loop.loader)))
    loop.train_step(next(loop.loader))
    found, wanted = state_of(loop), state_of(expected)
    for key in set(found) - COUNTED:
        torch.testing.assert_close(found[key], wanted[key], msg=key)
    assert int(found["average.n_averaged"]) == 1


def test_a_run_resumed_behind_a_step_that_was_refused_late_goes_on_bit_for_bit(tmp_path, tiny_set, monkeypatch):
    monkeypatch.setattr(LATE, BOTH)
    option = {"head__sample_rate": 0.5, "head__dtype": "bfloat16", "optimizer__name": "adamw"}
    whole = opened(tmp_path, tiny_set, **option)
    losses(whole, 1)
    whole.train_step(spoiled(next(whole.loader)))
    whole.save()
    assert whole.bad_steps.count == 1, "a checkpoint is written of steps that are settled"
    whole.checkpointer.wait()
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = opened(tmp_path, tiny_set, checkpoint=checkpoint, **option)
    assert losses(whole, 2) == losses(resumed, 2)
    found, expected = state_of(resumed), state_of(whole)
    assert [key for key, value in found.items() if not torch.equal(value, expected[key])] == []


@pytest.mark.parametrize("late", [False, True])
def test_too_many_bad_steps_end_the_run_with_the_same_words_one_step_later(tmp_path, tiny_set, monkeypatch, late):
    if late:
        monkeypatch.setattr(LATE, BOTH)
    loop = opened(tmp_path, tiny_set, train__max_bad_steps=2)
    losses(loop, 1)
    loop.train_step(spoiled(next(loop.loader)))
    second = spoiled(next(loop.loader))
    weights = {key: value.clone() for key, value in loop.program.backbone.named_parameters()}
    message = (
        r"2 steps in a row without finite numbers \(train.max_bad_steps\); stopped at step 2, older checkpoints are "
        r"intact: rank 0: embedding 0 of the batch(.|\n)*rank 0: pictures are not finite: samples at positions \[143\]"
    )
    if late:
        loop.train_step(second)
    with pytest.raises(WorkError, match=message):
        loop.train_step(next(loop.loader) if late else second)
    assert all(torch.equal(value, weights[key]) for key, value in loop.program.backbone.named_parameters())
    loop.close()


def test_pre_training_refuses_late_without_a_trace_in_keys_and_queue(tmp_path, tiny_set, monkeypatch):
    at_once = opened_contrast(contrast_recipe(tmp_path / "a", tiny_set, contrast={"queue": 40}, **SMALL))
    expected = losses(at_once, 3)
    monkeypatch.setattr(LATE, BOTH)
    loop = opened_contrast(contrast_recipe(tmp_path / "b", tiny_set, contrast={"queue": 40}, **SMALL))
    np.testing.assert_allclose(losses(loop, 3), expected, rtol=1e-5)
    before = state_of(loop)
    assert loop.train_step(spoiled(next(loop.loader))).isnan()
    assert loop.bad_steps.count == 0, "not yet read"
    after = state_of(loop)
    assert [key for key, value in after.items() if not torch.equal(value, before[key])] == []
    assert loop.train_step(next(loop.loader)).isfinite()
    assert loop.bad_steps.count == 1
    after = state_of(loop)
    assert not torch.equal(after["queue.keys"], before["queue.keys"])
    loop.close()


def refused_on_one_rank(rank, world_size, recipe):
    import dist_train.runtime.verdict as verdict

    verdict.LATE_ON = BOTH
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    loop = open_training(config, ranks_here(rank, world_size))
    loop.train_step(next(loop.loader))
    before, batch = state_of(loop), next(loop.loader)
    loss = float(loop.train_step(spoiled(batch) if rank == world_size - 1 else batch))
    after = state_of(loop)
    same = all(torch.equal(after[key], value) for key, value in before.items() if key not in COUNTED)
    error = loop._unruled[0].refusal()
    later = float(loop.train_step(next(loop.loader)))
    loop.close()
    return same, loss, str(error), loop.bad_steps.count, later


def test_ranks_refuse_a_late_step_together(tmp_path, tiny_set):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", tiny_set, tmp_path / "run", backbone__name="nano", train__micro_batch_size=24
    )
    found = run_ranks(2, refused_on_one_rank, recipe)
    for same, loss, error, bad, later in found:
        assert same
        assert np.isnan(loss)
        assert error.startswith("rank 1: embedding 0 of the batch is not finite (24 of 48 over all ranks)")
        assert bad == 1
        assert later == found[0][-1]
