"""What one rank meets is known to all before anyone acts on it."""

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dist_train.checkpoint import checkpointer as checkpoint_module
from dist_train.checkpoint.store import committed_checkpoints, read_best
from dist_train.config import load_config
from dist_train.data.loader import Loader
from dist_train.errors import UserError, WorkError
from dist_train.objectives import still_head
from dist_train.train import build as build_module
from dist_train.train import finish as finish_module
from dist_train.train import loop as trainer_module
from dist_train.train.build import open_training
from dist_train.train.run import lost_peer
from tests.launch.recipes import write_recipe
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.test_training import ranks_of_test


def open_trainer(rank, world_size, recipe):
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    return open_training(config, ranks_of_test(rank, world_size))


def lose_data(rank, world_size, recipe):
    """The second rank has no fourth batch; how each rank ends."""
    trainer = open_trainer(rank, world_size, recipe)
    following, taken = Loader.__next__, []

    def fails(self):
        taken.append(None)
        if rank == 1 and len(taken) == 4:
            raise WorkError("the cable is out")
        return following(self)

    Loader.__next__ = fails
    try:
        trainer.fit()
    except (WorkError, SystemExit) as error:
        trainer.close()
        return f"{type(error).__name__}: {error}"
    finally:
        Loader.__next__ = following


class Judged:
    def __init__(self, score):
        self.score = score

    def figures(self):
        return {"evaluate/score": self.score}


def see_an_older_best(rank, world_size, recipe):
    """The second rank's view of the file system has no best checkpoint."""
    trainer = open_trainer(rank, world_size, recipe)
    scores = iter([0.9, 0.5])
    trainer_module.evaluate_backbone = lambda *_: Judged(next(scores))
    if rank == 1:
        checkpoint_module.read_best = lambda _: None
    trainer.fit()
    trainer.close()
    trainer.ranks.barrier()


def both(rank, world_size, first, second):
    return lose_data(rank, world_size, first), see_an_older_best(rank, world_size, second)


def test_a_rank_whose_data_fail_ends_all_by_its_message_and_a_worse_model_is_best_on_no_ranks_word(tmp_path):
    write_set(tmp_path / "set")
    first = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "a", train__steps=8)
    options = {"train__steps": 4, "evaluate__every_steps": 2, "checkpoint__every_steps": 100}
    second = write_recipe(tmp_path / "b.yaml", tmp_path / "set", tmp_path / "b", **options)
    ends = [lost for lost, _ in run_ranks(2, both, first, second)]
    assert ends == ["WorkError: rank 1: the cable is out", "SystemExit: 1"]
    # What was trained until then is not lost.
    assert committed_checkpoints(tmp_path / "a")[-1].name == "step-00000003"
    assert read_best(tmp_path / "b") == (2, 0.9)


def report_for_long(rank, world_size, recipe):
    """Finish a run whose report takes rank 0 longer than ranks wait; how a plain wait for it ends on the others."""
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    ranks = ranks_of_test(rank, world_size)
    short = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    trainer = open_training(config, ranks)
    trainer.fit()
    publish = finish_module._publish

    def slow(*arguments):
        time.sleep(3)
        return publish(*arguments)

    finish_module._publish = slow
    ranks = replace(ranks, control_group=short)
    lost = finish_module.finish_run(config, trainer.outcome(), ranks, trainer.trackers, time.monotonic())
    trainer.close()
    if rank == 0:
        time.sleep(3)
        return lost, True
    with pytest.raises(RuntimeError) as error:
        ranks.barrier()
    return lost, lost_peer(error.value)


def test_ranks_wait_for_a_report_longer_than_for_a_step_and_know_a_wait_that_was_too_long(tmp_path):
    write_set(tmp_path / "set")
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "a", train__steps=1)
    assert run_ranks(2, report_for_long, recipe) == [([], True)] * 2
    assert (tmp_path / "a" / "summary.json").exists()


def lose_counts(rank, world_size, recipe):
    """How each rank ends where a head, and then a still one, is built, and the second rank has no pictures' counts."""

    def counts(*_):
        if rank == 1:
            raise UserError("identities.parquet: cannot be read")
        return torch.ones(10, dtype=torch.int64)

    build_module.class_counts = still_head.class_counts = counts
    config = load_config(recipe)
    loader = SimpleNamespace(sources=None, manifest=SimpleNamespace(num_classes=10))
    setting = SimpleNamespace(
        config=config,
        ranks=ranks_of_test(rank, world_size),
        loader=loader,
        step=0,
        restores_head=False,
        gathering=SimpleNamespace(verdict=None),
    )
    opened = (torch.nn.Identity(), 32, config, config.head)
    other = still_head.OtherRun("objectives.compatible.run", Path(), Path(), *opened)
    ends = []
    for build in (
        lambda: build_module._build_head(setting, None),
        lambda: still_head.build_still_head(other, setting),
    ):
        try:
            build()
        except (UserError, SystemExit) as error:
            ends.append(f"{type(error).__name__}: {error}")
    return ends


def test_a_rank_that_cannot_count_the_pictures_of_classes_ends_all_before_any_waits_for_it(tmp_path):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "a", head__margin="adaptive")
    ends = run_ranks(2, lose_counts, recipe, timeout_s=60)
    assert ends[0] == ["UserError: rank 1: identities.parquet: cannot be read"] * 2
    assert ends[1] == ["SystemExit: 2"] * 2
