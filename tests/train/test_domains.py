"""Runs over several domains: weighted sets, sets without labels, objectives that take two views."""

import pytest
import torch

from dist_train.errors import WorkError
from dist_train.train.dry_step import dry_step
from tests.sets import write_set
from tests.single import trainer


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("source", "target"):
        write_set(folder / name)
    return folder


def opened(tmp_path, sets, objectives=None, first=None, **values):
    """A run over both sets, with a step of two micro-batches."""
    mix = [{"path": str(sets / "target"), "weight": 1, **values}]
    more = {f"objectives__{name}": section for name, section in (objectives or {}).items()}
    return trainer(tmp_path, sets / "source", backbone__name="nano", data__mix=mix, data__loss_weight=first, **more)


def test_the_loss_is_what_the_sets_lose_times_their_weights(tmp_path, sets):
    loop = opened(tmp_path, sets, first=0.7, loss_weight=0.3)
    loss = float(loop.train_step(next(loop.loader)))
    found = loop.program.figures()
    assert found["head/share.source"] + found["head/share.target"] == 1
    assert found["head/loss.source"] != found["head/loss.target"]
    # Means over a step of two micro-batches, which hold the sets in unequal parts: near it here, exact for each.
    assert loss == pytest.approx(0.7 * found["head/loss.source"] + 0.3 * found["head/loss.target"], rel=0.02)
    loop.accumulation = loop.program._accumulation = 1
    loss = float(loop.train_step(next(loop.loader)))
    found = loop.program.figures()
    assert loss == pytest.approx(0.7 * found["head/loss.source"] + 0.3 * found["head/loss.target"], rel=1e-5)
    loop.close()


TERMS = {"consistency": {"samples": "unlabelled", "weight": 2.0}, "coral": {"weight": 3.0}}


def test_a_set_without_labels_is_trained_on_by_objectives_that_need_none(tmp_path, sets):
    loop = opened(tmp_path, sets, TERMS, labelled=False)
    loop.accumulation = loop.program._accumulation = 1
    batch = next(loop.loader)
    assert batch.other is not None
    assert set(batch.labels[batch.source == 1].tolist()) == {-1}
    loss = float(loop.train_step(batch))
    found = loop.program.figures()
    assert "head/loss.target" not in found
    parts = found["head/loss.source"] + 2 * found["consistency/loss"] + 3 * found["coral/loss"]
    assert loss == pytest.approx(parts, rel=1e-5)
    assert min(found["consistency/loss"], found["coral/loss"]) > 0
    loop.close()


def refused(loop, batch):
    """Steps until the run gives up."""
    for _ in range(loop.config.train.max_bad_steps):
        loop.train_step(batch)


def test_a_second_view_that_is_not_finite_refuses_the_step_without_a_trace_and_is_named(tmp_path, sets):
    loop = opened(tmp_path, sets, TERMS, labelled=False)
    before = {name: value.clone() for name, value in loop.program.backbone.state_dict().items()}
    rows = loop.program.head.tables()["centers"].clone()
    batch = next(loop.loader)
    batch.other[5] = float("nan")
    with pytest.raises(WorkError, match=r"pictures are not finite: samples at positions \[5\]"):
        refused(loop, batch)
    assert torch.equal(loop.program.head.tables()["centers"], rows)
    assert all(torch.equal(value, before[name]) for name, value in loop.program.backbone.state_dict().items())
    assert not [name for name in loop.program.figures() if "loss.source" in name]
    loop.close()


def test_a_dry_step_makes_the_recipes_objectives_over_several_sets(tmp_path, sets):
    loop = opened(tmp_path, sets, TERMS, labelled=False)
    loop.close()
    assert dry_step(loop.config, 32).loss > 0
