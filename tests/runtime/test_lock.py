"""Lock files: who holds one, who waits, and what a death releases."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dist_train.errors import UserError
from dist_train.runtime.lock import HeldError, Lock, NoLocksError, only_job


def test_a_lock_is_refused_while_it_is_held_with_its_holder_named_and_free_afterwards(tmp_path):
    path = tmp_path / "lock"
    with Lock(path):
        with pytest.raises(
            HeldError, match=rf"waited 0 s for process {os.getpid()} on \S+ to release \S+/lock"
        ) as held:
            Lock(path)
        assert held.value.holder == f"process {os.getpid()} on {os.uname().nodename}"
    assert path.read_bytes() == b"", "nobody is named who holds it no more"
    Lock(path).close()


def test_whoever_waits_gets_the_lock_when_it_is_released(tmp_path):
    held = Lock(tmp_path / "lock")
    threading.Timer(0.2, held.close).start()
    began = time.monotonic()
    Lock(tmp_path / "lock", wait_s=30).close()
    assert 0.1 < time.monotonic() - began < 20


def test_the_death_of_the_holder_releases_the_lock(tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from dist_train.runtime.lock import Lock\n"
        f"lock = Lock(Path({str(tmp_path / 'lock')!r})); print('held', flush=True); signal.pause()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HeldError, match=f"process {holder.pid} on"):
            Lock(tmp_path / "lock")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    Lock(tmp_path / "lock").close()


def test_a_lock_file_that_its_holder_removes_is_made_again(tmp_path):
    path = tmp_path / "run" / "lock"
    path.parent.mkdir()
    held = Lock(path)

    def give_up():
        path.unlink()
        path.parent.rmdir()
        held.close()

    threading.Timer(0.2, give_up).start()
    with Lock(path, wait_s=30), pytest.raises(HeldError):
        Lock(path)


def test_a_directory_that_goes_with_its_last_holder_is_made_again(tmp_path, monkeypatch):
    home = tmp_path / "job.parts"
    home.mkdir()
    really, gone = Path.open, []

    def open_too_late(path, *arguments, **values):
        if len(gone) < 3:
            gone.append(shutil.rmtree(path.parent))  # by a job that ends in this instant
        return really(path, *arguments, **values)

    monkeypatch.setattr(Path, "open", open_too_late)
    with Lock(home / "lock"):
        assert len(gone) == 3
        with pytest.raises(HeldError):
            Lock(home / "lock")


def test_a_second_job_on_an_output_is_refused_by_host_process_and_time(tmp_path):
    who = rf"process {os.getpid()} on \S+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    first, second = (only_job(tmp_path / "lock", tmp_path / "out") for _ in range(2))
    with first, pytest.raises(UserError, match=rf"out: another job is working on it \({who}\); wait for it"):
        second.__enter__()
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        third = only_job(tmp_path / "lock", tmp_path / "out")
        with pytest.raises(UserError, match=r"working on it \(its holder is not known\)"):
            third.__enter__()


def test_a_job_on_a_file_system_without_locks_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_job(tmp_path / "lock", tmp_path / "out"):
        assert "cannot be locked (No locks available): see to it that no other job works on it" in caplog.text
    with pytest.raises(NoLocksError, match="No locks available"):
        Lock(tmp_path / "lock")
    with pytest.raises(IsADirectoryError):
        only_job(tmp_path, tmp_path / "out").__enter__()
