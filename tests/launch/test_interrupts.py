"""Ctrl-C and SIGTERM, once and again, at every moment of a command: one line, status 130, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.track.trackers import read_metrics
from tests.data.sets import make_set
from tests.launch.recipes import QUICK, environment, write_recipe
from tests.sets import write_pairs, write_set

INT, TERM = signal.SIGINT, signal.SIGTERM
READY = "here it stands"

# The command with one function of it replaced by one that says where it stands and takes its time.
PATCHED = """
import sys, time
from importlib import import_module
from launch.__main__ import main
module, name, after = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
owner = import_module(module.partition(":")[0])
for part in module.partition(":")[2].split("."):
    owner = getattr(owner, part) if part else owner
before = getattr(owner, name)
def slow(*arguments, **options):
    sys.stderr.write("here it stands\\n")
    sys.stderr.flush()
    time.sleep(float(after))
    return before(*arguments, **options)
setattr(owner, name, slow)
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_set(path / "set")
    write_pairs(path / "pairs.bin")
    return path


def start(*arguments):
    command, here = [sys.executable, *map(str, arguments)], Path(__file__).parents[2]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        cwd=here,
        preexec_fn=lambda: signal.signal(INT, signal.SIG_DFL),  # it is ignored where the tests run in the background
    )


def interrupted(process, signals, pause_s=0.3):
    """Send `signals` to the whole foreground group, as a terminal does; what the process says from now on."""
    for number in signals:
        if process.poll() is None:
            os.killpg(process.pid, number)
        time.sleep(pause_s)
    try:
        message = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert "Exception ignored" not in message
    return message


def at(process, sign):
    """Read on until the process has said `sign`."""
    said = []
    for line in process.stderr:
        said.append(line)
        if sign in line:
            return
    raise AssertionError("".join(said))


def catches(process, number):
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("command", ["train", "embed", "prep"])
def test_a_command_that_is_starting_ends_at_once(tmp_path, data, command):
    recipe = write_recipe(tmp_path / "a.yaml", data / "set", tmp_path / "run")
    arguments = {
        "train": ("train", recipe),
        "embed": ("embed", tmp_path / "a.onnx", tmp_path, tmp_path / "out.parquet"),
        "prep": ("prep", "align", data, tmp_path / "out"),
    }
    process = start("-m", "launch", *arguments[command])
    while not catches(process, TERM):  # Python itself has one for the other
        time.sleep(0.01)
    assert interrupted(process, [INT, INT]) == "interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "signals"),
    [("evaluate_backbone", [INT]), ("evaluate_backbone", [TERM, INT]), ("export_onnx", [INT, INT])],
)
def test_evaluation_and_export_end_at_once_with_what_was_made(tmp_path, data, name, signals):
    options = QUICK | {"train__steps": 2, "export__onnx": True, "evaluate__verification": [str(data / "pairs.bin")]}
    recipe = write_recipe(tmp_path / "a.yaml", data / "set", tmp_path / "run", **options)
    module = "dist_train.export.onnx" if name == "export_onnx" else "dist_train.train.finish"
    process = start("-c", PATCHED, module, name, 30, "train", recipe)
    at(process, READY)
    assert interrupted(process, signals) == "interrupted\n"
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step-00000002"
    assert (tmp_path / "run" / "report.html").exists() == (name == "export_onnx")
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_second_signal_while_the_last_checkpoint_is_written_does_not_cost_it(tmp_path, data):
    recipe = write_recipe(tmp_path / "a.yaml", data / "set", tmp_path / "run", **QUICK, train__steps=2)
    process = start("-c", PATCHED, "dist_train.checkpoint.checkpointer:Checkpointer", "_write", 3, "train", recipe)
    at(process, READY)
    message = interrupted(process, [TERM, INT, INT])
    assert "stopped at step 2 of 2, checkpoint written; go on with the same command and --resume" in message
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step-00000002"
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("pause_s", [0.0, 0.5])
def test_ranks_of_a_launcher_end_in_order_however_often_they_are_asked(tmp_path, data, pause_s):
    recipe = write_recipe(tmp_path / "a.yaml", data / "set", tmp_path / "run", **QUICK, train__steps=100000)
    process = start("-m", "launch", "launch", "local", recipe, "--ranks", 2)
    while not len(read_metrics(tmp_path / "run")) > 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    message = interrupted(process, [INT, INT, TERM, INT], pause_s)
    assert message.count("checkpoint written; go on with the same command and --resume") == 1
    assert len(committed_checkpoints(tmp_path / "run")) >= 1
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing-*"))


def test_ranks_of_a_launcher_that_are_starting_end_at_once(tmp_path, data):
    recipe = write_recipe(tmp_path / "a.yaml", data / "set", tmp_path / "run")
    process = start("-m", "launch", "launch", "local", recipe, "--ranks", 2)
    at(process, "torch.distributed.run")
    time.sleep(2)
    message = interrupted(process, [INT, INT])
    assert message.count("interrupted") <= 1
    assert len(message.splitlines()) <= 1, message


def verifying(tmp_path):
    """`data verify`, and the processes that it started, of which one reads a shard that never comes."""
    make_set(tmp_path / "set", [4, 4, 4])
    first, second = tmp_path / "set" / "x-000000.tar", tmp_path / "set" / "x-000001.tar"
    for pipe in (first, second):
        pipe.unlink()
        os.mkfifo(pipe)
    process = start("-m", "launch", "data", "verify", tmp_path / "set", "--workers", 1)
    while True:
        try:
            os.close(os.open(first, os.O_WRONLY | os.O_NONBLOCK))  # which goes when somebody wants to read it
            return process, psutil.Process(process.pid).children(recursive=True)
        except OSError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)


def test_a_check_of_a_set_ends_at_once_with_its_processes(tmp_path):
    process, children = verifying(tmp_path)
    message = interrupted(process, [INT])
    assert message.endswith("interrupted\n")
    assert "leaked" not in message
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_processes_that_check_a_set_end_with_a_command_that_is_killed(tmp_path):
    process, children = verifying(tmp_path)
    process.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=60)[1]
    process.communicate()


def test_a_check_of_a_set_says_that_a_process_of_it_died(tmp_path):
    process, children = verifying(tmp_path)
    worker = max(children, key=lambda child: child.memory_info().rss)  # the other one is multiprocessing's own
    worker.kill()
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "Traceback" not in message
    assert "failed: one of 1 worker processes died; if memory ran out, use fewer workers" in message
