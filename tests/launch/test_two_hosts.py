"""`headcount launch torchrun` on two hosts with a network between them."""

import re
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.track.trackers import read_metrics
from tests.launch.hosts import Hosts, missing
from tests.launch.recipes import QUICK, REFERENCE, environment, headcount_forked, write_recipe
from tests.sets import write_set

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no two hosts: {missing()}"),
    pytest.mark.timeout(600),  # on a busy machine
]

# The agents wait less for others than they do by default, so that tests take less time.
HASTE = {"PET_RDZV_CONF": "last_call_timeout=5,keep_alive_interval=1"}


@pytest.fixture
def hosts(tmp_path):
    with Hosts(tmp_path) as hosts:
        yield hosts


def start(hosts, name, recipe, nodes):
    options = ("--nodes", nodes, "--procs-per-node", "1", "--rdzv", "host-a")
    command = [sys.executable, "-m", "launch", "launch", "torchrun", str(recipe), *options]
    return subprocess.Popen(
        hosts.inside(name, *command), stderr=subprocess.PIPE, text=True, env=environment(**HASTE), errors="replace"
    )


def wait_until(holds, *agents):
    deadline = time.monotonic() + 200
    while not holds():
        assert [agent.poll() for agent in agents] == [None] * len(agents), [agent.communicate() for agent in agents]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def worlds_of(agent):
    """The numbers of ranks that the ranks of an agent know of."""
    found = set()
    for process in psutil.Process(agent.pid).children(recursive=True):
        with suppress(psutil.Error):
            found.add(process.environ().get("WORLD_SIZE"))
    return found - {None}


def last_step(run_dir):
    return max((line["step"] for line in read_metrics(run_dir)), default=0)


def losses(run_dir):
    return {line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line}


def test_when_a_host_is_lost_the_other_goes_on_alone_at_the_same_losses(hosts, tmp_path):
    write_set(tmp_path / "set")
    # Over 80 steps rounding grows; a low rate keeps it far below what another sample order would change.
    steps = QUICK | {"train__steps": 80, "optimizer__lr": 0.0002, "train__timeout_s": 10}
    recipe = write_recipe(tmp_path / "b.yaml", tmp_path / "set", tmp_path / "b", **steps)
    agents = [start(hosts, name, recipe, "1:2") for name in ("host-a", "host-b")]
    wait_until(lambda: worlds_of(agents[1]) == {"2"}, *agents)
    alone = last_step(tmp_path / "b")  # host-a may have begun before host-b was there
    wait_until(lambda: last_step(tmp_path / "b") >= alone + 3 and committed_checkpoints(tmp_path / "b"), *agents)
    hosts.power_off("host-b")
    message = agents[0].communicate(timeout=250)[1]
    assert agents[0].returncode == 0, message
    assert "resumed from" in message
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "a", **steps, **REFERENCE)
    whole = headcount_forked("train", recipe)
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-2)


def test_a_host_without_the_data_is_named_and_the_job_ends_on_both(hosts, tmp_path):
    write_set(tmp_path / "set")
    hosts.cover("host-b", tmp_path / "set")
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    agents = [start(hosts, name, recipe, "2") for name in ("host-a", "host-b")]
    messages = [agent.communicate(timeout=200)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [2, 2], messages
    said = [line for line in "".join(messages).splitlines() if line.startswith("error: ")]
    assert len(said) == 1, "said once, and not tried again"
    assert re.match(rf"error: rank [01]: dataset {tmp_path}/set: neither manifest.json nor ", said[0])
