"""The agent of torchrun in this process, which starts and watches the ranks of this machine."""

import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from dist_train.errors import WorkError
from dist_train.runtime.processes import threads
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher.api import LaunchConfig

logger = logging.getLogger(__name__)

USER_MISTAKE = 2  # exit status, as `headcount` itself gives it
HINT_EVERY_S = 60.0
STOP_TIMEOUT_S = 600
"""How long the ranks may take for their checkpoint after a signal to the agent."""


def run_agent(settings: "LaunchConfig", arguments: list[str]) -> int:
    """Run `python ARGUMENTS` as the ranks that `settings` describe, and return the exit status of the job.

    What went wrong stands in the failing rank's own output.

    Raises:
        WorkError: the machines of the job did not find each other.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as after nohup; torch would take the signal all the same
        settings.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    api.LocalElasticAgent = agent_type()  # type: ignore[misc]  # which elastic_launch makes
    # The ranks' own messages say what happened; the agent's would bury them. Each module of it has its level.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, count in threads(max(1, len(os.sched_getaffinity(0)) // settings.nproc_per_node)).items():
        os.environ.setdefault(name, count)
    advice = (
        "start the same command on all of them, and see that each can reach this address and that no other program "
        "listens there; another one: --rdzv HOST:PORT"
    )
    meeting = f"{settings.min_nodes} machines at {settings.rdzv_endpoint}, job {settings.run_id}"
    try:
        with hints(f"waiting for a meeting of {meeting}: {advice}", HINT_EVERY_S):
            api.elastic_launch(settings, sys.executable)(*arguments)
    except ChildFailedError as error:
        # Ranks that lost a peer, or were ended for it, follow the one that failed.
        statuses = [failure.exitcode for failure in error.failures.values()]
        return USER_MISTAKE if USER_MISTAKE in statuses else next((status for status in statuses if status > 0), 1)
    except SignalException:
        return INTERRUPTED_STATUS
    except RendezvousError as error:
        raise WorkError(f"no meeting of {meeting}: {error}; {advice}") from error
    return 0


def agent_type() -> "type[LocalElasticAgent]":
    """The class of an agent of torchrun that keeps how its ranks ended.

    Those that ended for a user's mistake are not started again to make it once more, and those that were asked to stop
    are waited for, however often that is asked.
    """
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    told = "timeout" in inspect.signature(LocalElasticAgent._shutdown).parameters

    class Agent(LocalElasticAgent):
        def _shutdown(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
            # The ranks are ending in order, and would be lost if another signal ended this process before them.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if told:
                super()._shutdown(death_sig or signal.SIGTERM, timeout)
                return
            if death_sig is not None and self._pcontext:  # older torch gives them 30 s
                self._pcontext.close(death_sig, STOP_TIMEOUT_S)
            super()._shutdown(death_sig or signal.SIGTERM)

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result: RunResult = super()._monitor_workers(worker_group)
            if any(failure.exitcode == USER_MISTAKE for failure in result.failures.values()):
                self._remaining_restarts = 0
            return result

    return Agent


@contextmanager
def hints(text: str, every_s: float) -> Iterator[None]:
    """Log `text` every minute while this process has no ranks yet: machines wait for each other silently."""
    done = threading.Event()
    others = set(psutil.Process().children())  # that this process had before, such as multiprocessing's helpers

    def watch() -> None:
        while not done.wait(every_s):
            if set(psutil.Process().children()) <= others:
                logger.warning("%s", text)

    thread = threading.Thread(target=watch, name="hints", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
