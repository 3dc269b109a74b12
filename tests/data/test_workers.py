"""Decoding processes that die, hang or fail: noticed in seconds, named, never waited for without end."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.errors import WorkError
from tests.data.sets import make_set


def config(path, **values):
    defaults = {"path": str(path), "workers": 2, "prefetch": 2, "backend": "opencv", "window_shards": 2}
    return DataConfig.model_validate(defaults | values)


def children():
    return [p for p in psutil.Process().children() if "dist_train.data.worker" in " ".join(p.cmdline())]


def exhaust(loader):
    for _ in range(1000):
        next(loader)


@pytest.fixture
def path(tmp_path):
    make_set(tmp_path, [20, 20])
    return tmp_path


def test_a_killed_worker_is_named_within_seconds(path):
    with build_loader(config(path), 8, 0, 1, 0) as loader:
        next(loader)
        victim = children()[1]
        os.kill(victim.pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(WorkError, match=rf"data worker [01] of 2 \(pid {victim.pid}\) was killed by SIGKILL"):
            exhaust(loader)
        assert time.monotonic() - begin < 20
    assert not children()


def test_all_workers_killed_is_an_error_and_not_a_wait(path):
    with build_loader(config(path), 8, 0, 1, 0) as loader:
        next(loader)
        for victim in children():
            os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(WorkError, match="was killed by SIGKILL"):
            exhaust(loader)


def test_a_worker_that_hangs_is_named_with_what_it_does_when_the_time_limit_passes(path):
    (path / "x-000000.tar").unlink()
    os.mkfifo(path / "x-000000.tar")  # opening it waits for a writer who never comes
    with build_loader(config(path, check_at_start=False, timeout_s=12), 8, 0, 1, 0) as loader:
        with pytest.raises(
            WorkError, match=r"within data.timeout_s=12 s: waited for positions \d+ to \d+; worker"
        ) as error:
            exhaust(loader)
        assert "x-000000.tar" in str(error.value)
    assert not children()


def test_a_worker_says_why_it_failed(path):
    for file in path.glob("*.tar"):
        file.write_bytes(bytes(file.stat().st_size))
    with (
        build_loader(config(path, max_bad_fraction=1), 8, 0, 1, 0) as loader,
        pytest.raises(WorkError, match=r"(?s)data worker \d of 2 failed: .*bad samples in a row"),
    ):
        next(loader)


def test_closing_ends_the_workers_and_may_be_repeated(path):
    loader = build_loader(config(path), 8, 0, 1, 0)
    assert len(children()) == 2
    loader.close()
    loader.close()
    assert not children()


def test_workers_end_when_the_training_process_is_killed(path):
    program = f"""
import sys
from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
loader = build_loader(DataConfig.model_validate({{"path": {str(path)!r}, "workers": 2}}), 8, 0, 1, 0)
next(loader)
print("ready", flush=True)
sys.stdin.read()
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout.readline() == "ready\n"
    workers = psutil.Process(trainer.pid).children()
    assert len(workers) == 2
    trainer.kill()
    trainer.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_workers_do_not_import_torch_or_the_training_program():
    program = "import sys, dist_train.data.worker; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_signals_to_the_whole_group_leave_workers_to_the_trainer_from_their_first_moment(path):
    with build_loader(config(path), 8, 0, 1, 0) as loader:
        for worker in children():  # which are hardly more than started
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        for _ in range(3):
            next(loader)
    assert not children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
