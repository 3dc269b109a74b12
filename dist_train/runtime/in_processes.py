"""A function of many items, in processes that end when it is not waited for any more."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from threading import Thread
from typing import TypeVar

from dist_train.errors import WorkError
from dist_train.runtime.processes import ONE_THREAD, spawning

In = TypeVar("In")
Out = TypeVar("Out")

_GRACE_S = 5.0


def in_processes(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Generator[Out]:
    """Values of `function` for each item in order, from `workers` processes with one thread each.

    A signal or an error here ends them at once, whatever they are at, and so does the end of this process.

    Args:
        function: of a module's top level, or a `partial` of one.
        items: are pickled, as the values are.
        workers: processes.

    Raises:
        WorkError: a process died, as the kernel kills it where memory runs out.
        Exception: what `function` raises.
    """
    with spawning(ONE_THREAD):  # its first semaphore starts a process, too
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow)
    try:
        results = _submit(pool, function, items)
        while results:
            yield results.popleft().result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkError(
            f"one of {workers} worker processes died; if memory ran out, use fewer workers, then give the command again"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):  # `pool.kill_workers()` from Python 3.14 on
            process.kill()
            process.join()
        # Its semaphores go with it. An older Python may hang if it was about to tell a process something (gh-94777).
        closing = Thread(target=partial(pool.shutdown, cancel_futures=True), daemon=True)
        closing.start()
        closing.join(_GRACE_S)


def _submit(pool: ProcessPoolExecutor, function: Callable[[In], Out], items: Iterable[In]) -> "deque[Future[Out]]":
    # A process inherits what is blocked here: these go to the whole group, and this process decides what follows.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with spawning(ONE_THREAD):
            return deque(pool.submit(function, item) for item in items)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow() -> None:
    """Let this process end with the one that started it, however that ends."""
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
