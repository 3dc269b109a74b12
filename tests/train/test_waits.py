"""A step that logs nothing does not make the host wait for its GPU.

What is counted is what the step's own thread asks for. Rows in host memory are fetched by another thread, which waits
for the GPU, and the step for that thread: `docs/architecture.md` says so.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dist_train.train.contrast import Contrast
from tests.contrast.runs import contrast_recipe
from tests.contrast.runs import opened as opened_contrast
from tests.single import ALONE, trainer
from tests.waits import NEAR, Waits

CASES = {
    "arcface": {},
    "sampled": {"head__sample_rate": 0.5, "head__margin": "curricularface", "head__dtype": "bfloat16"},
    "host": {"head__sample_rate": 0.5, "head__margin": "adaface", "head__storage": "host", "optimizer__name": "adamw"},
    "accumulated": {
        "train__micro_batch_size": 24,
        "train__precision": "bfloat16",
        "train__ema_decay": 0.9,
        "optimizer__clip_norm": 0.5,
    },
    "several labels": {"data__labels_per_sample": 3, "head__margin": "cosface", "head__scale": 30.0},
    "sub-centers": {"head__centers_per_class": 2, "head__interclass_threshold": 0.3, "head__optimizer": "adamw"},
    "scaled": {"train__precision": "float16", "optimizer__clip_norm": 0.5},
    "terms": {
        "data__images_per_class": 6,
        "objectives__center": {"centers": "own"},
        "objectives__consistency": {"samples": "all"},
    },
    "domains": {
        "data__mix": [{"path": "other", "weight": 1, "labelled": False}],
        "objectives__coral": {"weight": 3.0},
        "objectives__consistency": {"samples": "unlabelled"},
    },
}


def opened(tmp_path, sets, device, case, **rank):
    for each in case.get("data__mix", []):
        each["path"] = str(sets / "other")
    quiet = {"backbone__name": "nano", "train__micro_batch_size": 48, "train__log_every": 1000}
    loop = trainer(tmp_path, sets / "set", rank={"device": device} | rank, **quiet | case)
    scaler = loop.program.replica._scaler
    if scaler.is_enabled():  # the first steps of such a run overflow as a rule
        scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    return loop


def opened_for_contrast(tmp_path, sets, device):
    small = {"backbone__name": "nano", "train__micro_batch_size": 12}
    recipe = contrast_recipe(tmp_path, sets / "set", contrast={"queue": 40}, **small)
    loop = opened_contrast(recipe, ranks=replace(ALONE, device=device))
    loop.config = loop.config.model_copy(update={"train": loop.config.train.model_copy(update={"log_every": 1000})})
    loop.total_steps = 1000
    return loop


def on_device(loop) -> Iterator[torch.Tensor]:
    """What the parts of a program keep there."""
    program = loop.program
    for kept in program.replica._optimizer.state.values():
        yield from kept.values()
    if isinstance(program, Contrast):
        for module in (program.network, program.momentum_encoder):
            yield from (*module.parameters(), *module.buffers())
        yield from program.queue.state_dict().values()
        return
    for module in (program.backbone, program.average):
        if module is not None:
            yield from (*module.parameters(), *module.buffers())
    yield from program.head.margin.state().values()
    if program.head.config.storage == "device":
        yield from program.head.tables().values()
    for term in program._further.values():
        if hasattr(term.objective, "_table"):
            yield from term.objective._table._store.tables.values()


def waits_of_a_step(loop):
    """Of the third one: the first two make what is kept, e.g. an optimizer's tensors."""
    waits = Waits(on_device(loop))
    for _ in range(3):
        waits.found.clear()
        batch = next(loop.loader)
        batch = batch._replace(images=batch.images.clone(), labels=batch.labels.clone())
        waits.add(each for each in (batch.images, batch.labels, batch.other) if each is not None)
        with waits:
            loop.train_step(batch)
    loop.settle()
    assert loop.bad_steps.count == 0
    loop.close()
    return waits.found


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr("dist_train.runtime.verdict.LATE_ON", frozenset({"cpu", "cuda"}))


@pytest.mark.parametrize("name", CASES)
def test_a_step_that_logs_nothing_waits_for_nothing(tmp_path, sets, late, name):
    assert waits_of_a_step(opened(tmp_path, sets, NEAR, CASES[name])) == []


def test_a_step_of_pre_training_waits_for_nothing(tmp_path, sets, late):
    assert waits_of_a_step(opened_for_contrast(tmp_path, sets, NEAR)) == []


def test_waits_that_are_left_are_counted(tmp_path, sets, late, monkeypatch):
    """Else the tests above would show nothing."""
    (tmp_path / "a").mkdir()
    found = waits_of_a_step(opened(tmp_path / "a", sets, NEAR, {"head__filter_eps": 1e-4}))
    assert found
    assert all("head/filtering.py" in each for each in found), found
    monkeypatch.undo()
    (tmp_path / "b").mkdir()
    found = waits_of_a_step(opened(tmp_path / "b", sets, NEAR, {}))
    assert {each.split(":")[0] for each in found} == {
        "cpu at dist_train/runtime/verdict.py",
        "numpy at dist_train/runtime/verdict.py",
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*CASES, "contrast"])
def test_a_gpu_agrees_that_nothing_waits(tmp_path, sets, name):
    device = torch.device("cuda", 0)
    contrast = name == "contrast"
    loop = opened_for_contrast(tmp_path, sets, device) if contrast else opened(tmp_path, sets, device, CASES[name])
    for _ in range(2):
        loop.train_step(next(loop.loader))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.train_step(next(loop.loader))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loop.settle()
    assert loop.bad_steps.count == 0
    loop.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_stream_of_transfers_changes_no_loss(tmp_path, sets):
    found = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    for beside in (True, False):
        (tmp_path / str(beside)).mkdir()
        loop = opened(tmp_path / str(beside), sets, torch.device("cuda", 0), {"train__precision": "float32"})
        if not beside:
            loop.loader._transfer._uplink = None
        found.append([float(loop.train_step(next(loop.loader))) for _ in range(5)])
        loop.close()
    torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]
