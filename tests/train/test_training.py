"""Whole runs on real ranks, through the trainer and through the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.errors import UserError, WorkError
from dist_train.runtime.ranks import Ranks
from dist_train.track.trackers import read_metrics
from dist_train.train.build import open_training
from tests.launch.recipes import headcount, headcount_forked, headcount_here
from tests.ranks import run_ranks
from tests.sets import write_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


def write_recipe(path, tiny_set, run_dir, **overrides):
    # Gentle steps: at lr 0.003 from short rows, one process alone comes to losses 1e-3 apart in 8 steps when its
    # first weights are changed by 1e-7 of themselves, so no tolerance could tell an error of the ranks from that.
    tree = {
        "run_dir": str(run_dir),
        "data": {"path": str(tiny_set), "workers": 0},
        "backbone": {"name": "nano", "embedding_dim": 16},
        "head": {"scale": 16.0, "init_std": 0.25},
        "train": {"steps": 8, "global_batch_size": 48, "micro_batch_size": 8, "log_every": 1, "device": "cpu"},
        "optimizer": {"lr": 0.0001},
        "checkpoint": {"every_steps": 4},
        "track": {"wandb": "disabled"},
    }
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def ranks_of_test(rank, world_size):
    if world_size == 1:
        return Ranks(0, 0, 1, torch.device("cpu"))
    groups = [dist.new_group(backend="gloo") for _ in range(2)]
    return Ranks(rank, rank, world_size, torch.device("cpu"), dist.group.WORLD, *groups)


def train_steps(rank, world_size, recipe, steps, checkpoint=None):
    """Losses of the next `steps` steps; the state is saved at the end."""
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    trainer = open_training(config, ranks_of_test(rank, world_size), checkpoint)
    with trainer.loader:
        batches = iter(trainer.loader)
        losses = [float(trainer.train_step(next(batches))) for _ in range(steps)]
    trainer.save()
    trainer.checkpointer.wait()
    trainer.ranks.barrier()  # until rank 0 has committed
    return np.array(losses)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_set):
    """Losses of eight steps on one rank."""
    path = tmp_path_factory.mktemp("alone")
    return run_ranks(1, train_steps, write_recipe(path / "a.yaml", tiny_set, path / "a"), 8)[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_loss_curve_is_the_same_on_one_rank_and_on_several(tmp_path, tiny_set, alone, world_size):
    spread = run_ranks(world_size, train_steps, write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b"), 8)
    for losses in spread:
        np.testing.assert_allclose(losses, alone, atol=1e-4, rtol=0)
    assert alone[-1] < alone[0]


def test_a_run_goes_on_on_another_number_of_ranks_as_if_never_stopped(tmp_path, tiny_set, alone):
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b")
    losses = []
    for world_size, steps in ((2, 3), (3, 2), (1, 3)):
        found = committed_checkpoints(tmp_path / "b")
        losses.append(run_ranks(world_size, train_steps, recipe, steps, found[-1] if found else None)[0])
    np.testing.assert_allclose(np.concatenate(losses), alone, atol=1e-4, rtol=0)


def test_the_command_trains_on_two_ranks_and_leaves_a_summary_and_a_report(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    done = headcount("launch", "local", recipe, "--ranks", 2)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["identities"], summary["images"], summary["ranks"], summary["steps"]) == (10, 80, 2, 8)
    assert summary["onnx_max_abs_diff"] < 1e-3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 9))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    backbone, config, progress = load_backbone(tmp_path / "run")
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 16)
    assert (config.seed, progress.step) == (0, 8)

    again = headcount_here("train", recipe)
    assert again.returncode == 2
    assert "holds another run; continue it with --resume" in again.stderr
    other = headcount_here("train", recipe, "--resume", "optimizer.lr=0.5")
    assert other.returncode == 2
    assert "optimizer.lr: 0.0001 -> 0.5" in other.stderr


def test_an_interrupt_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__steps=100000)
    command = [sys.executable, "-m", "launch", "launch", "local", str(recipe), "--ranks", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not len(read_metrics(tmp_path / "run")) > 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the whole foreground group
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130, message
    assert "checkpoint written; go on with the same command and --resume" in message
    assert "Traceback" not in message
    assert len(committed_checkpoints(tmp_path / "run")) >= 1
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing-*"))


def by_an_agent(recipe, override):
    return headcount("launch", "local", recipe, "--ranks", 2, override)


def without_ranks(recipe, override):
    """For what is refused before any rank is started."""
    return headcount_here("launch", "local", recipe, "--ranks", 2, override)


def by_two_ranks(recipe, override):
    return headcount_forked("train", recipe, override, ranks=2)


@pytest.mark.parametrize(
    ("start", "override", "status", "message"),
    [
        (by_an_agent, "data.path=/nowhere", 2, "no such directory"),
        (by_two_ranks, "train.global_batch_size=4096", 2, "fewer than one global batch of 4096"),
        (without_ranks, "train.micro_batch_size=5", 2, "is not a multiple of"),
        (by_two_ranks, "run_dir=/proc/run", 2, "cannot write there"),
        (without_ranks, "head.sample_rat=0.1", 2, "did you mean head.sample_rate?"),
        (without_ranks, "train.device=cuda", 2, "device=cuda: 0 GPUs for 2 ranks"),
    ],
)
def test_a_mistake_is_one_message_and_status_two(tmp_path, tiny_set, start, override, status, message):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    done = start(recipe, override)
    assert done.returncode == status, done.stderr
    assert done.stderr.count(message) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_label_beyond_the_class_count_names_label_and_count(tmp_path):
    write_set(tmp_path / "set", labels=[99] * 80)
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    done = headcount_here("train", recipe)
    assert done.returncode in (1, 2), done.stderr
    assert "99" in done.stderr
    assert "10" in done.stderr
    assert "Traceback" not in done.stderr


def spoil(rank, world_size, recipe):
    """Five steps: rank 1 sees NaN in a later micro-batch of the second, the fourth and the fifth."""
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    trainer = open_training(config, ranks_of_test(rank, world_size))
    found = {"losses": [], "states": []}
    with trainer.loader:
        for spoiled in (False, True, False, True, True):
            batch = next(trainer.loader)
            if spoiled and rank == 1:
                batch.images[9] = float("nan")  # in the second of three micro-batches
            try:
                found["losses"].append(float(trainer.train_step(batch)))
            except (WorkError, SystemExit) as error:
                found["end"] = str(error)
            state = trainer.program.replica.backbone_state()
            found["states"].append({name: value.clone().numpy() for name, value in state.items()})
    found["count"] = trainer.bad_steps.count
    return found


def check_spoiled(ranks):
    """What two ranks found in `spoil` is as it must be, under whatever strategy."""
    for found in ranks:
        losses, states = found["losses"], found["states"]
        assert found["count"] == 3
        assert np.isfinite(losses).tolist() == [True, False, True, False]
        for name, value in states[1].items():
            np.testing.assert_array_equal(value, states[0][name], err_msg=name)
        assert all(np.isfinite(value).all() for value in states[2].values())
    message = ranks[0]["end"]
    assert "2 steps in a row without finite numbers (train.max_bad_steps); stopped at step 4" in message
    # Step 4 is of positions 192 to 239, rank 1 has the second half, and the picture is its tenth.
    assert re.search(
        r"\n  rank 1: pictures are not finite: samples at positions \[225\], labels \[\d\], of 8\n", message
    )
    assert "\n  rank 0" not in message
    assert ranks[1]["end"] == "1"  # an exit status: rank 0 speaks for all


def without_data(rank, world_size, recipe):
    """What ranks say when the second has no data."""
    config = load_config(recipe, ["data.path=/nowhere"] if rank == 1 else [])
    config.run_dir.mkdir(exist_ok=True)
    try:
        open_training(config, ranks_of_test(rank, world_size))
    except (UserError, SystemExit) as error:
        return str(error)


def spoil_and_go_without_data(rank, world_size, recipe):
    return spoil(rank, world_size, recipe), without_data(rank, world_size, recipe)


def test_nan_on_one_rank_is_skipped_on_all_without_a_trace_and_at_last_ends_the_run_by_rank_and_sample(
    tmp_path, tiny_set
):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__max_bad_steps=2)
    found = run_ranks(2, spoil_and_go_without_data, recipe)
    check_spoiled([one for one, _ in found])
    # A node without the data is named by the first rank, and the job ends.
    assert found[0][1].startswith("rank 1: dataset /nowhere: no such directory")
    assert found[1][1] == "2"
