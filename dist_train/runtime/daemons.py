"""Threads that the end of the process does not wait for, unlike those of `ThreadPoolExecutor`."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

_T = TypeVar("_T")


class Daemons:
    """Threads that work off calls in the order in which they were given."""

    def __init__(self, count: int, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"{name}-{each}", daemon=True) for each in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], _T]) -> "Future[_T]":
        """The result of a call, which may be cancelled until it begins."""
        result: Future[_T] = Future()
        self._calls.put((result, call))
        return result

    def close(self, wait_s: float) -> None:
        """Let the threads end after the calls given so far, and wait for that so long; safe to repeat."""
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            _finish(*given)
            del given  # or the result would stay in memory until the next call


def _finish(result: "Future[Any]", call: Callable[[], Any]) -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(call())
    except BaseException as error:
        result.set_exception(error)
