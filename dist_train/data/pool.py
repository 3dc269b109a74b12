"""Decoding processes, and the same work done in this process.

Traffic: the trainer writes tasks, 20 bytes each, into one pipe that all workers read; workers write lines of JSON into
another. Pixels go through shared memory. Both pipes rely on the kernel's atomic small reads and writes and not on
locks, so a worker that is killed at any moment leaves nothing behind that the others wait for.
"""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_train.data.assemble import Assembler, BatchPlan, build_order
from dist_train.data.bad_samples import BadSample
from dist_train.data.counters import Ints
from dist_train.data.exchange import TASK, Board, anonymous_file, make_memory, positions_of
from dist_train.data.several_labels import empty_labels
from dist_train.errors import WorkError
from dist_train.runtime.processes import ONE_THREAD, child_environment

if TYPE_CHECKING:
    from torch import Tensor

_LOOK_S = 0.25  # pause between looks at whether the workers live
_CHUNK = 64  # most samples in a task
_TASKS = 1500  # most tasks under way: all fit into a pipe, so that writing one never blocks
_GRACE_S = 2.0  # for workers to end by themselves


class Finished(NamedTuple):
    """A batch before it goes to the device; its arrays may be overwritten after the next `submit`.

    `other` is the second view of the samples, where the plan has two.
    """

    images: "NDArray[np.uint8] | Tensor"
    labels: Ints
    positions: Ints
    sources: Ints
    bad: list[BadSample]
    other: "NDArray[np.uint8] | Tensor | None" = None


def second(images: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The second view among [views, B, 3, S, S], if there is one."""
    return images[1] if len(images) > 1 else None


class Producer(Protocol):
    """Makes batches in the order they were asked for."""

    def submit(self, first: int) -> None:
        """Ask for the batch whose first position is `first`."""

    def collect(self) -> Finished:
        """Wait for the batch that was asked for first, among those not collected yet."""

    def close(self) -> None:
        """Give everything back; safe to repeat."""


class LocalProducer:
    """Makes batches in the calling process."""

    def __init__(self, plan: BatchPlan, batch_size: int) -> None:
        self._assembler = Assembler(plan)
        self._firsts: deque[int] = deque()
        self._images = np.empty((plan.views, batch_size, 3, plan.image_size, plan.image_size), dtype=np.uint8)
        self._labels = empty_labels(batch_size, plan.config.labels_per_sample)
        self._sources = empty_labels(batch_size, 1)

    def submit(self, first: int) -> None:
        """Ask for the batch whose first position is `first`."""
        self._firsts.append(first)

    def collect(self) -> Finished:
        """Make the batch that was asked for first."""
        positions = positions_of(self._firsts.popleft(), 0, len(self._labels))
        bad = self._assembler.fill(positions, self._images, self._labels, self._sources)
        return Finished(self._images[0], self._labels, positions, self._sources, bad, second(self._images))

    def close(self) -> None:
        """Close the shards."""
        self._assembler.close()


class _Pending:
    """A batch under way."""

    def __init__(self, first: int, slot: int, tasks: int) -> None:
        self.first, self.slot, self.tasks = first, slot, tasks
        self.bad: list[BadSample] = []


class WorkerPool:
    """Makes batches in processes of its own, up to `slots` at a time."""

    def __init__(self, plan: BatchPlan, batch_size: int, workers: int, slots: int, timeout_s: float) -> None:
        self._plan = plan
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        # Pieces small enough to share a batch out evenly, and few enough for the pipe.
        self._chunk = max(1, min(_CHUNK, -(-batch_size // workers)), -(-batch_size * slots // _TASKS))
        self._free = deque(range(slots))
        self._pending: deque[_Pending] = deque()
        self._rest = b""
        self._looked = time.monotonic()
        self._workers: list[subprocess.Popen[bytes]] = []
        form = slots, plan.views, batch_size, plan.image_size, workers, plan.config.labels_per_sample
        memory = make_memory(*form)
        self._board = Board(memory, *form)
        self._board.working[:, 0] = -1
        tasks_out, self._tasks = os.pipe()
        self._results, results_in = os.pipe()
        os.set_blocking(self._results, False)
        try:
            for number in range(workers):
                self._workers.append(_start((plan, batch_size, slots, workers), tasks_out, results_in, memory, number))
        except OSError as error:
            self.close()
            raise WorkError(f"data worker {len(self._workers)} of {workers} cannot be started: {error}") from error
        finally:
            # Only workers hold these ends now: a pipe breaks when the last of them has gone.
            for descriptor in (tasks_out, results_in, memory):
                os.close(descriptor)

    def submit(self, first: int) -> None:
        """Ask for the batch whose first position is `first`."""
        slot = self._free.popleft()
        starts = range(0, self._batch_size, self._chunk)
        self._pending.append(_Pending(first, slot, len(starts)))
        tasks = [TASK.pack(first, slot, start, min(self._chunk, self._batch_size - start)) for start in starts]
        try:
            for task in tasks:
                os.write(self._tasks, task)
        except BrokenPipeError:
            self._look_after_workers()
            raise WorkError("all data workers have ended; see their messages above") from None

    def collect(self) -> Finished:
        """Wait for the batch that was asked for first, among those not collected yet.

        Raises:
            WorkError: a worker died or failed, or the time limit passed.
        """
        batch = self._pending[0]
        begin = now = time.monotonic()
        self._receive()
        while True:
            if now - self._looked >= _LOOK_S:
                self._looked = now
                self._look_after_workers()
            if not batch.tasks:
                break
            if now - begin > self._timeout_s:
                raise WorkError(self._explain_delay(batch))
            readable, _, _ = select.select([self._results], [], [], _LOOK_S)
            if readable:
                self._receive()
            now = time.monotonic()
        self._pending.popleft()
        self._free.append(batch.slot)
        positions = positions_of(batch.first, 0, self._batch_size)
        batch.bad.sort()
        board, slot = self._board, batch.slot
        images = board.images[slot]
        return Finished(images[0], board.labels[slot], positions, board.sources[slot], batch.bad, second(images))

    def _receive(self) -> None:
        try:
            data = os.read(self._results, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._look_after_workers()
            raise WorkError("all data workers have ended; see their messages above")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: list[Any]) -> None:
        kind, number, *rest = message
        if kind == "failed":
            raise WorkError(f"data worker {number} of {len(self._workers)} failed: {rest[0]}")
        batch = next(each for each in self._pending if each.slot == number)
        if kind == "done":
            batch.tasks -= 1
        else:
            batch.bad.append(BadSample(*rest))

    def _look_after_workers(self) -> None:
        for number, worker in enumerate(self._workers):
            status = worker.poll()
            if status is None:
                continue
            self._receive_last_words()
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            where = self._describe(int(self._board.working[number, 0]))
            raise WorkError(
                f"data worker {number} of {len(self._workers)} (pid {worker.pid}) {how} {where}; if memory ran out, "
                "use fewer data.workers; then resume the run"
            )

    def _receive_last_words(self) -> None:
        try:
            data = os.read(self._results, 1 << 20)
        except BlockingIOError:
            return
        for line in (self._rest + data).split(b"\n"):
            if line.startswith(b'["failed"'):
                self._take(json.loads(line))

    def _explain_delay(self, batch: _Pending) -> str:
        now = time.monotonic_ns()
        busy = [
            f"worker {number} (pid {worker.pid}) has been {self._describe(position)} for {(now - since) / 1e9:.0f} s"
            for number, (worker, (position, since)) in enumerate(
                zip(self._workers, self._board.working.tolist(), strict=True)
            )
            if position >= 0
        ]
        return (
            f"no batch within data.timeout_s={self._timeout_s:g} s: waited for positions {batch.first} to "
            f"{batch.first + self._batch_size - 1}; " + ("; ".join(busy) or "no worker is at work")
        )

    def _describe(self, position: int) -> str:
        if position < 0:
            return "between tasks"
        places = build_order(self._plan).locate(positions_of(position, 0, self._chunk))
        names = [shard.name for each in self._plan.sets for shard in each.manifest.shards]
        shards = [names[number] for number in np.unique(places.shard)]
        more = f" and {len(shards) - 3} more" if len(shards) > 3 else ""
        return f"at positions from {position} on, in {', '.join(shards[:3])}{more}"

    def close(self) -> None:
        """End the workers; safe to repeat."""
        for descriptor in (self._tasks, self._results):
            if descriptor >= 0:
                os.close(descriptor)
        self._tasks = self._results = -1
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _start(what: tuple[Any, ...], tasks: int, results: int, memory: int, number: int) -> "subprocess.Popen[bytes]":
    # A file, not a pipe: writing to a worker that never reads would block. Each reads from its own offset.
    plan = anonymous_file("headcount-plan")
    # A worker inherits what is blocked here: these go to the whole group, and the trainer decides what follows.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with os.fdopen(os.dup(plan), "wb") as file:
            pickle.dump(what, file)
        os.lseek(plan, 0, os.SEEK_SET)
        descriptors = (plan, tasks, results, memory)
        return subprocess.Popen(
            # A program of its own and not a fork: forking a process with threads or a GPU is not safe, and
            # multiprocessing's other ways import the training program, with torch, into each worker.
            [sys.executable, "-m", "dist_train.data.worker", *map(str, descriptors), str(number)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            env=child_environment(ONE_THREAD),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(plan)
