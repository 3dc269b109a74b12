import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dist_train.errors import UserError
from dist_train.trackers import read_metrics
from launch.torchrun import meeting_point, node_range
from tests.launch.recipes import environment, headcount, write_recipe
from tests.ranks import free_port
from tests.sets import write_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    return path


@pytest.mark.parametrize(("text", "expected"), [("1", (1, 1)), ("4", (4, 4)), ("2:16", (2, 16)), ("3:3", (3, 3))])
def test_nodes_are_a_number_or_a_range(text, expected):
    assert node_range(text) == expected


@pytest.mark.parametrize("text", ["0", "4:2", "0:2", "two", "1:2:3", "-1", "", "2:"])
def test_other_nodes_are_refused_with_what_is_expected(text):
    with pytest.raises(UserError, match="expected N or MIN:MAX"):
        node_range(text)


def test_the_meeting_point_defaults_to_a_free_port_on_one_machine_and_must_be_named_for_several():
    assert meeting_point(None, 1) == "localhost:0"
    assert meeting_point("node0", 2) == "node0:29400"
    assert meeting_point("10.0.0.7:5000", 4) == "10.0.0.7:5000"
    with pytest.raises(UserError, match="--rdzv is missing"):
        meeting_point(None, 2)
    for wrong in ("node0:port", ":29400", "node0:70000", "node0:"):
        with pytest.raises(UserError, match=r"expected HOST or HOST:PORT"):
            meeting_point(wrong, 2)


def test_a_dry_run_prints_one_command_the_same_on_every_machine(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    call = ("launch", "torchrun", recipe, "--nodes", "2:4", "--rdzv", "n0", "--procs-per-node", 8, "--dry-run")
    first, second = headcount(*call, "head.margin=cosface"), headcount(*call, "head.margin=cosface")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    words = shlex.split(first.stdout)
    assert words[1:4] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nnodes=2:4", "--nproc-per-node=8", "--rdzv-endpoint=n0:29400", "--max-restarts=3"} < set(words)
    assert words[-6:] == ["-m", "launch.rank", str(tmp_path / "run"), "train", str(recipe), "head.margin=cosface"]
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_recipe_is_said_before_any_rank_starts(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    done = headcount("launch", "torchrun", recipe, "head.sample_rat=0.1")
    assert done.returncode == 2
    assert done.stderr.count("did you mean head.sample_rate?") == 1
    assert "Traceback" not in done.stderr


def start(*arguments):
    command = [sys.executable, "-m", "launch", "launch", "torchrun", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())


def wait_for_step(run_dir, step, *agents):
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(run_dir)):
        for agent in agents:
            assert agent.poll() is None, agent.stderr.read()
        assert time.monotonic() < deadline, f"no step {step} within two minutes"
        time.sleep(0.1)


def ranks_of(agent):
    """Its rank processes by rank."""
    children = psutil.Process(agent.pid).children()
    return {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}


def losses(run_dir):
    return {line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line}


def test_a_killed_rank_means_a_fresh_start_from_the_newest_checkpoint(tmp_path, tiny_set):
    whole = headcount("launch", "local", write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "a"), "--ranks", 2)
    assert whole.returncode == 0, whole.stderr
    # Two agents of one rank each are two machines to torchrun. The one that keeps its rank counts no failure.
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b")
    meeting = f"localhost:{free_port()}"
    agents = [start(recipe, "--nodes", 2, "--procs-per-node", 1, "--rdzv", meeting) for _ in range(2)]
    wait_for_step(tmp_path / "b", 7, *agents)
    found = {rank: process for agent in agents for rank, process in ranks_of(agent).items()}
    assert sorted(found) == [0, 1]
    found[1].send_signal(signal.SIGKILL)
    messages = [agent.communicate(timeout=200)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], messages
    assert any("resumed from" in message for message in messages)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_a_machine_that_comes_later_is_taken_in_at_the_same_losses(tmp_path, tiny_set):
    # Over 80 steps rounding grows; a low rate keeps it far below what another sample order would change.
    steps = {"train__steps": 80, "optimizer__lr": 0.0005}
    whole = headcount("launch", "local", write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "a", **steps))
    assert whole.returncode == 0, whole.stderr
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b", **steps)
    call = (recipe, "--nodes", "1:2", "--procs-per-node", 1, "--rdzv", f"localhost:{free_port()}")
    first = start(*call)
    wait_for_step(tmp_path / "b", 3, first)
    second = start(*call)
    messages = [agent.communicate(timeout=200)[1] for agent in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], messages
    assert any("resumed from" in message for message in messages)
    expected = losses(tmp_path / "a")
    found = losses(tmp_path / "b")
    assert sorted(found) == sorted(expected)
    assert found == pytest.approx(expected, abs=1e-2)


def test_a_signal_to_the_agent_leaves_a_checkpoint_and_status_130(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", train__steps=100_000)
    agent = start(recipe, "--procs-per-node", 2)
    wait_for_step(tmp_path / "run", 3, agent)
    os.kill(agent.pid, signal.SIGTERM)
    message = agent.communicate(timeout=60)[1]
    assert agent.returncode == 130, message
    assert "checkpoint written; go on with the same command and --resume" in message
