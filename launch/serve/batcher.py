"""A batcher: concurrent callers' tasks go in batches through one function, on one thread."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class FullError(Exception):
    """Too many tasks wait already."""


class _Asked(NamedTuple, Generic[Task, Answer]):
    task: Task
    future: "asyncio.Future[Answer]"


class Batcher(Generic[Task, Answer]):
    """A thread that answers what coroutines ask.

    While it works the next batch fills, so it waits for company only where it was idle.

    Args:
        process: tasks -> their answers, in order.
        most: tasks in a batch.
        wait_s: how long an idle thread waits for a batch to fill.
        waiting: most tasks that wait.
        watch: is told the size of each batch.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Task]], Sequence[Answer]],
        most: int,
        wait_s: float,
        waiting: int,
        watch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._process, self._most, self._wait_s, self._waiting, self._watch = process, most, wait_s, waiting, watch
        self._changed = threading.Condition()
        self._queue: deque[_Asked[Task, Answer]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tasks that wait now."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether one task more would be refused."""
        return self.waiting >= self._waiting

    @property
    def alive(self) -> bool:
        """Whether anything would be answered."""
        return self._thread.is_alive() and not self._closing

    async def ask(self, tasks: Sequence[Task]) -> list[Answer]:
        """The answers to some tasks, in order. A caller that is cancelled takes its waiting tasks back.

        Raises:
            FullError: no room for all of them; at once.
        """
        loop = asyncio.get_running_loop()
        asked = [_Asked(task, loop.create_future()) for task in tasks]
        with self._changed:
            if self._closing or len(self._queue) + len(asked) > self._waiting:
                raise FullError
            self._queue += asked
            self._changed.notify()
        try:
            answers: list[Answer] = await asyncio.gather(*(each.future for each in asked))
        except asyncio.CancelledError:
            with self._changed:
                self._queue = deque(each for each in self._queue if not each.future.cancelled())
            raise
        return answers

    def close(self) -> None:
        """Answer what was taken, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _take(self) -> list[_Asked[Task, Answer]]:
        """The next batch; empty at the end."""
        while taken := self._popped():
            if wanted := [each for each in taken if not each.future.cancelled()]:
                return wanted
        return []

    def _popped(self) -> list[_Asked[Task, Answer]]:
        """The next of the queue, also those whose callers have left; empty at the end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
                until = time.monotonic() + self._wait_s
                while len(self._queue) < self._most and not self._closing and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]

    def _run(self) -> None:
        while self._work():
            pass

    def _work(self) -> bool:
        """Answer a batch, of which nothing is held afterwards; whether there was one."""
        batch = self._take()
        if not batch:
            return False
        self._watch(len(batch))
        for asked, answer in zip(batch, self._answers([each.task for each in batch]), strict=True):
            with suppress(RuntimeError):  # its loop has ended
                asked.future.get_loop().call_soon_threadsafe(_settle, asked.future, answer)
        return True

    def _answers(self, tasks: Sequence[Task]) -> list[Answer | Exception]:
        """Answers; where a batch fails, each task is tried alone, so that one cannot spoil the others."""
        try:
            return list(self._process(tasks))
        except Exception as error:
            if len(tasks) == 1:
                return [error]
            logger.warning("a batch of %d failed (%s); each is tried alone", len(tasks), type(error).__name__)
        return [self._answers([task])[0] for task in tasks]


def _settle(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    if future.done():  # cancelled meanwhile
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
