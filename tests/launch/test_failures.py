"""Errors from outside of a command end it with a line and the right status: full disks, closed pipes, no rights."""

import os
import resource
import subprocess
import sys
from dataclasses import replace

import pytest

from dist_train.errors import UserError
from launch import cli
from tests.data.sets import make_set
from tests.launch.recipes import environment, headcount_here


def command(*arguments, **options):
    with_output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    words = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(words, text=True, timeout=240, env=environment(), check=False, **with_output)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    make_set(root, [6, 6], num_classes=3, size=16)
    return root


def fail_with(monkeypatch, error):
    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)


@pytest.mark.parametrize(("arguments", "unbuffered"), [(["--help"], ""), (["data", "inspect"], "1")])
def test_a_full_disk_behind_standard_output_is_one_line(dataset, arguments, unbuffered):
    words = [*arguments, *([dataset] if arguments[0] == "data" else [])]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *map(str, words)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            check=False,
        )
    assert done.stderr == "failed: standard output: No space left on device\n"
    assert done.returncode == 1


def test_a_closed_pipe_ends_a_command_quietly(dataset):
    read, write = os.pipe()
    os.close(read)
    done = command("data", "inspect", dataset, stdout=write)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_broken_pipe_that_is_not_standard_output_is_not_hidden(monkeypatch, capsys):
    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "app", lambda: _as_typer_does(broken))
    assert cli.run() == 1
    assert "in broken" in (said := capsys.readouterr().err)
    assert "Please report it" in said


def _as_typer_does(work):
    try:
        work()
    except OSError:
        sys.exit(1)


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), "error: /data/x: Permission denied", 2),
        (OSError(30, "Read-only file system", b"/data/\xff"), "error: /data/\\udcff: Read-only file system", 2),
        (FileNotFoundError(2, "No such file or directory", "/x\x1b"), "error: /x\\x1b: No such file or directory", 2),
        (OSError(28, "No space left on device", "/data/x"), "failed: /data/x: No space left on device", 1),
        (OSError(5, "Input/output error", "/data/x"), "failed: /data/x: Input/output error", 1),
        (MemoryError("8 GB"), "failed: not enough memory, at ", 1),
        (RuntimeError("[enforce] DefaultCPUAllocator: not enough memory"), "failed: not enough memory, at ", 1),
        (RecursionError("maximum"), "failed: an input is nested too deeply, at ", 1),
        (UserError("two\nlines"), "error: two\nlines", 2),
    ],
)
def test_errors_that_anything_may_raise_are_a_line_with_the_path(monkeypatch, capsys, error, line, status):
    fail_with(monkeypatch, error)
    assert cli.run() == status
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert "Traceback" not in said


def test_an_unforeseen_error_keeps_its_traceback_and_asks_to_be_reported(monkeypatch, capsys):
    fail_with(monkeypatch, KeyError("x\x1b[31m"))
    assert cli.run() == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.endswith("Please report it, with the lines above and the command.\n")
    assert "\x1b" not in said


def test_typing_errors_keep_their_hints():
    wrong = headcount_here("data", "inspekt")
    assert wrong.returncode == 2
    assert "Did you mean 'inspect'?" in wrong.stderr


@pytest.fixture
def little_memory():
    """200 MB more than this process has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/status", encoding="ascii") as file:
        held = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + (200 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def test_little_memory_is_one_line(tmp_path, little_memory):
    manifest = make_set(tmp_path, [6], num_classes=3, size=16)
    replace(manifest, image_size=8000).save(tmp_path)  # a sheet of six such pictures takes 1 GB
    done = headcount_here("data", "inspect", tmp_path, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("failed: not enough memory, at ")
    assert "Traceback" not in done.stderr
