"""A rank that hangs ends the job, and all ranks tell where they stand; one whose launcher is gone ends."""

import os
import threading

import pytest

from dist_train.config import load_config
from dist_train.train.build import open_training
from dist_train.train.run import run
from tests.launch.recipes import write_recipe
from tests.ranks import run_ranks
from tests.sets import write_set
from tests.train.test_training import ranks_of_test


def hang(rank, world_size, recipe):
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    trainer = open_training(config, ranks_of_test(rank, world_size))
    step = trainer.train_step

    def waits_for_nothing(batch):
        if rank == 1 and trainer.step == 2:
            threading.Event().wait()
        return step(batch)

    trainer.train_step = waits_for_nothing
    trainer.fit()


def test_a_rank_that_hangs_ends_all_with_the_stacks_of_each_in_the_log(tmp_path, capfd):
    write_set(tmp_path / "set")
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run", train__timeout_s=5.0)
    with pytest.raises(AssertionError, match="died"):
        run_ranks(2, hang, recipe)
    log = capfd.readouterr().err
    for rank in range(2):
        assert f"rank {rank}: no step for 5 s (train.timeout_s)" in log
    stands = {
        rank: "\n".join(line for line in log.splitlines() if line.startswith(f"rank {rank}: ")) for rank in range(2)
    }
    assert "waits_for_nothing" in stands[1]
    assert "threading.py" in stands[1]
    assert "distributed_c10d.py" in stands[0]  # in an exchange with the one that hangs


class OrphanedError(Exception):
    pass


@pytest.mark.parametrize("stage", ["open_training", "finish_run"])
def test_a_rank_whose_torchrun_is_gone_ends_while_it_starts_and_while_it_makes_results_too(
    tmp_path, monkeypatch, capfd, stage
):
    write_set(tmp_path / "set")
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run", train__steps=1)
    ended = threading.Event()

    def orphaned(*_, **__):
        monkeypatch.setattr(os, "getppid", lambda: -1)
        assert ended.wait(30), "still there"
        raise OrphanedError

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(f"dist_train.train.run.{stage}", orphaned)
    with pytest.raises(OrphanedError):
        run(load_config(recipe), resume=False)
    assert "rank 0: the process that launched this rank is gone" in capfd.readouterr().err
