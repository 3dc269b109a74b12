import os
import signal
import sys

import pytest

from dist_train.runtime.progress import progress_bar
from dist_train.runtime.stop_signal import StopSignal


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_bar_goes_on_when_whoever_read_it_is_gone(monkeypatch, buffering):
    read, write = os.pipe()
    os.close(read)
    gone = os.fdopen(write, "w", buffering=buffering)
    monkeypatch.setattr(sys, "stderr", gone)
    with pytest.raises(BrokenPipeError):
        print("a line", file=gone, flush=True)
    with progress_bar(total=3, mininterval=0) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix(loss=1)
    assert bar.n == 3
    os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # for what the stream still holds
    gone.close()


def test_a_closed_terminal_asks_for_a_stop_except_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
