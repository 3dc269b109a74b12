import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed.elastic.agent.server.api import WorkerState
from typer.testing import CliRunner

from dist_train.errors import UserError
from dist_train.track.trackers import read_metrics
from launch.agent import ENDS, agent_type, hints
from launch.cli import app
from launch.torchrun import SETTINGS, meeting_point, node_range
from tests.launch.recipes import QUICK, REFERENCE, environment, headcount_forked, write_recipe
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


def test_the_meeting_point_of_several_machines_must_be_named():
    assert meeting_point("node0") == "node0:29400"
    assert meeting_point("10.0.0.7:5000") == "10.0.0.7:5000"
    with pytest.raises(UserError, match="--rdzv is missing"):
        meeting_point(None)
    for wrong in ("node0:port", ":29400", "node0:70000", "node0:"):
        with pytest.raises(UserError, match=r"expected HOST or HOST:PORT"):
            meeting_point(wrong)


def invoke(*arguments):
    """The command line in this process; a user's mistake is raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_dry_run_prints_one_command_the_same_on_every_machine(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    nodes = ("--nodes", "1:3", "--rdzv", "n0", "--procs-per-node", 2)
    call = ("launch", "torchrun", recipe, *nodes, "--dry-run", "train.micro_batch_size=4")
    first, second = invoke(*call, "head.margin=cosface"), invoke(*call, "head.margin=cosface")
    assert first.stdout == second.stdout
    words = shlex.split(first.stdout)
    assert words[:2] == [f"{name}={value}" for name, value in SETTINGS.items()]
    assert words[2:5] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nnodes=1:3", "--nproc-per-node=2", "--rdzv-endpoint=n0:29400", "--max-restarts=3"} < set(words)
    assert words[-4:] == ["train", str(recipe), "train.micro_batch_size=4", "head.margin=cosface"]
    assert words[-7:-4] == ["-m", "launch.rank", str(tmp_path / "run")]
    assert not (tmp_path / "run").exists()


def test_a_local_dry_run_prints_a_command_that_meets_on_a_free_port(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    told = invoke(
        "launch", "local", recipe, "--ranks", 3, "--resume", "--allow-changes", "optimizer.lr=0.01", "--dry-run"
    ).stdout
    words = shlex.split(told)
    assert {"--nnodes=1", "--nproc-per-node=3", "--rdzv-endpoint=localhost:0", "--max-restarts=0"} < set(words)
    assert words[-7:] == ["-m", "launch", "train", str(recipe), "optimizer.lr=0.01", "--resume", "--allow-changes"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["local", "head.sample_rat=0.1"], "did you mean head.sample_rate?"),
        (["local", "--ranks", "5"], "48 is not a multiple of 5 ranks"),
        (["local", "train.device=cuda"], "0 GPUs for 2 ranks on this machine"),
        (["torchrun", "head.sample_rat=0.1"], "did you mean head.sample_rate?"),
        (["torchrun", "--nodes", "2", "--procs-per-node", "1"], "--rdzv is missing"),
        (["torchrun", "--nodes", "1:2", "--rdzv", "n0"], "with 2 of 1:2 machines: train.global_batch_size 48 is not"),
        (["slurm", "--nodes", "5", "--gpus-per-node", "0"], "48 is not a multiple of 5 ranks"),
        (["slurm", "--gpus-per-node", "0", "train.device=cuda"], "--gpus-per-node 0 for 1 ranks of a node"),
    ],
)
def test_a_mistake_is_said_before_any_rank_starts(tmp_path, tiny_set, monkeypatch, options, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run")
    name, *more = options
    with pytest.raises(UserError) as mistake:
        invoke("launch", name, recipe, *more)
    assert message in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_machines_that_wait_for_others_say_so_until_their_ranks_are_there(caplog):
    with hints("waiting", every_s=0.02):
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(caplog.messages) == {"waiting"}
        with subprocess.Popen(["sleep", "60"]) as rank:
            time.sleep(0.2)
            caplog.clear()
            time.sleep(0.2)
            rank.kill()
            assert caplog.messages == []


# The agents wait less for others than they do by default.
HASTE = {"PET_RDZV_CONF": "last_call_timeout=2,keep_alive_interval=1"}


def start(*arguments):
    command = [sys.executable, "-m", "launch", "launch", "torchrun", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**HASTE))


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
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "a", **QUICK, **REFERENCE)
    whole = headcount_forked("train", recipe, ranks=2)
    assert whole.returncode == 0, whole.stderr
    # Two agents of one rank each are two machines to torchrun. The one that keeps its rank counts no failure.
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b", **QUICK)
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


def is_asked_to_stop(process):
    """Whether a signal that asks it to end waits for a process that is suspended."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    pending = next(line.split()[1] for line in lines if line.startswith("ShdPnd"))
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_machine_that_comes_later_is_taken_in_at_the_same_losses(tmp_path, tiny_set):
    # Over the steps rounding grows; a low rate keeps it far below what another sample order would change.
    steps = QUICK | {"optimizer__lr": 0.0002}
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "a", **steps, **REFERENCE)
    whole = headcount_forked("train", recipe, ranks=2)
    assert whole.returncode == 0, whole.stderr
    recipe = write_recipe(tmp_path / "b.yaml", tiny_set, tmp_path / "b", **steps)
    call = (recipe, "--nodes", "1:2", "--procs-per-node", 1, "--rdzv", f"localhost:{free_port()}")
    first = start(*call)
    wait_for_step(tmp_path / "b", 3, first)
    # It is not done before the second has come: it stands still until its agent has met that one and ends it.
    rank = ranks_of(first)[0]
    rank.suspend()
    try:
        second = start(*call)
        deadline = time.monotonic() + 120
        while not is_asked_to_stop(rank):
            assert time.monotonic() < deadline, "the second machine was not met within two minutes"
            time.sleep(0.1)
    finally:
        rank.resume()
    messages = [agent.communicate(timeout=200)[1] for agent in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], messages
    assert any("resumed from" in message for message in messages)
    expected = losses(tmp_path / "a")
    found = losses(tmp_path / "b")
    assert sorted(found) == sorted(expected)
    assert found == pytest.approx(expected, abs=1e-2)


def test_a_signal_to_the_agent_leaves_a_checkpoint_and_status_130(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", **QUICK, train__steps=100_000)
    agent = start(recipe, "--procs-per-node", 2)
    wait_for_step(tmp_path / "run", 3, agent)
    os.kill(agent.pid, signal.SIGTERM)
    message = agent.communicate(timeout=60)[1]
    assert agent.returncode == 130, message
    assert "checkpoint written; go on with the same command and --resume" in message


def test_an_agent_that_waits_for_a_machine_again_ends_when_it_is_asked_to(tmp_path, tiny_set):
    recipe = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", **QUICK, train__steps=100_000)
    call = (recipe, "--nodes", 2, "--procs-per-node", 1, "--rdzv", f"localhost:{free_port()}")
    agents = [start(*call) for _ in range(2)]
    wait_for_step(tmp_path / "run", 3, *agents)
    listening = {each.laddr.port for agent in agents[:1] for each in psutil.Process(agent.pid).net_connections("tcp")}
    first, second = agents if int(call[-1].partition(":")[2]) in listening else agents[::-1]
    old = psutil.Process(first.pid).children()
    second.kill()  # and its rank with it; the store of the meeting is the first one's
    second.communicate()
    assert not psutil.wait_procs(old, timeout=60)[1]
    time.sleep(1)
    first.terminate()
    try:
        message = first.communicate(timeout=60)[1]
    finally:
        first.kill()
    assert first.returncode == 130, message


class Context:
    """Ranks that take whatever time they are given; a signal comes meanwhile."""

    closed: tuple[signal.Signals, int] | None = None

    def close(self, death_sig, timeout):
        self.closed = death_sig, timeout
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("state", "limit_s"), [("HEALTHY", 600), ("FAILED", 30)])
def test_ranks_that_make_room_for_a_machine_have_time_for_a_checkpoint_and_a_signal_meanwhile_counts_after(
    state, limit_s
):
    kind = agent_type([])
    agent = kind.__new__(kind)
    agent._pcontext, agent._worker_watchdog, agent._health_check_server = Context(), None, None
    came = []
    before = {number: signal.getsignal(number) for number in ENDS}
    try:
        handlers = {
            signal.SIGTERM: lambda *_: came.append(agent._pcontext.closed),
            signal.SIGHUP: signal.SIG_IGN,  # as after nohup
        }
        for number, handler in handlers.items():
            signal.signal(number, handler)
        agent._stop_workers(SimpleNamespace(state=WorkerState[state]))
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert came == [(signal.SIGTERM, limit_s)]


AGENT = """
import sys
from torch.distributed.launcher.api import LaunchConfig
from launch.agent import run_agent
job = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "job", "local_addr": "localhost"}
sys.exit(run_agent(LaunchConfig(1, 1, 2, max_restarts=0, **job), ["-c", *sys.argv[1:]]))
"""
RANK = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1 + int(os.environ["RANK"])])))
time.sleep(1)  # torch knows its ranks some milliseconds after they began
sys.stderr.write("ready\\n")
time.sleep(60)
"""


@pytest.mark.parametrize(("statuses", "expected"), [((130, 130), 130), ((130, 1), 1)])
def test_a_rank_that_was_asked_to_stop_and_failed_gives_the_job_its_status(statuses, expected):
    command = [sys.executable, "-c", AGENT, RANK, *map(str, statuses)]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    for _ in statuses:
        while "ready" not in (line := agent.stderr.readline()):
            assert line, agent.poll()
    agent.terminate()
    message = agent.communicate(timeout=60)[1]
    assert agent.returncode == expected, message
