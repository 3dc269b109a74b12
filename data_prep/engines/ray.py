"""The engine of a Ray cluster: the cluster that RAY_ADDRESS names, or that this machine belongs to."""

import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Generator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from data_prep.engines.engine import Outcome, Task, attempt
from dist_train.errors import UserError
from dist_train.runtime.processes import ONE_THREAD

_STOPPING_S = 30.0
_ANSWER_S = 10.0


class RayEngine:
    """The engine of a Ray cluster, with at most `workers` units at a time; by default one on each CPU at any time.

    A unit whose worker or node dies has failed. Every node needs this package and sees the source and the set's
    directory under the same paths.

    Args:
        workers: most units at a time; None: as many as the cluster has CPUs, while it grows and shrinks.
        gpus: number of GPUs for a unit, or a share of one.
    """

    def __init__(self, workers: int | None = None, gpus: float = 0) -> None:
        self._workers = workers
        self._gpus = gpus

    def run(self, task: Task, units: Sequence[int]) -> Generator[Outcome]:
        """See `Engine`.

        Raises:
            UserError: Ray is not installed, or no cluster is there.
        """
        ray = _library()
        opened = _connect(ray)
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0)(_attempt)
        pickled = ray.put(pickle.dumps(task))
        here = os.getcwd()
        unsafe = "" if here in sys.path else here
        waiting, busy = deque(units), dict[Any, int]()
        try:
            while waiting or busy:
                while waiting and len(busy) < (self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))):
                    unit = waiting.popleft()
                    busy[remote.remote(pickled, unit, unsafe)] = unit
                for reference in ray.wait(list(busy), timeout=5.0)[0]:  # seconds between looks at the cluster's size
                    yield _outcome(ray, reference, busy.pop(reference))
        finally:
            for reference in busy:
                ray.cancel(reference, force=True)
            if busy:
                ray.wait(list(busy), num_returns=len(busy), timeout=_STOPPING_S)
            if opened:
                ray.shutdown()


def _library() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: Ray is not installed; install it: pip install 'headcount[ray]'") from error
    return ray


def _connect(ray: ModuleType) -> bool:
    """Join the cluster; whether this process had not joined it before."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:  # Ray would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
        except OSError as error:
            raise UserError(
                f"RAY_ADDRESS={address}: nothing answers there ({error}); correct it or unset it"
            ) from error
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise UserError(
            "--engine ray: no Ray cluster is found; run this on one of its machines, name it in RAY_ADDRESS, "
            "or start one here: ray start --head"
        ) from error
    return True


def _outcome(ray: ModuleType, reference: Any, unit: int) -> Outcome:  # noqa: ANN401 - Ray has no types
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(unit, None, f"the worker died ({type(error).__name__}: {str(error).strip().splitlines()[-1]})")
    return outcome


def _attempt(pickled: bytes, unit: int, unsafe: str) -> Outcome:
    """The outcome of a unit, in a worker of the cluster and one thread.

    Args:
        pickled: the task.
        unit: number of the unit.
        unsafe: the job's working directory, which Ray puts first in its workers' search path of modules; empty where
            the job's own search path begins with it.
    """
    if unsafe in sys.path:
        sys.path.remove(unsafe)
    os.environ.update(ONE_THREAD)  # the task loads the libraries that read it, after this line
    return attempt(_opened(pickled), unit)


@lru_cache(maxsize=1)
def _opened(pickled: bytes) -> Task:
    """The unpickled task, which stays open for the next unit."""
    task: Task = pickle.loads(pickled)
    return task
