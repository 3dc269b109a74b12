"""The agent of torchrun in this process, which starts and watches the ranks of this machine."""

import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from dist_train.errors import WorkError
from dist_train.runtime.looking import looking
from dist_train.runtime.processes import threads
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher.api import LaunchConfig

logger = logging.getLogger(__name__)

USER_MISTAKE = 2  # exit status, as `headcount` itself gives it
FAILED = 1
HINT_EVERY_S = 60.0
STOP_TIMEOUT_S = 600
"""How long the ranks may take for their checkpoint after a signal to the agent."""
FAILED_TIMEOUT_S = 30  # of those that are left where one failed, as torch has it
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    asked: list[int] = []
    api.LocalElasticAgent = agent_type(asked)  # type: ignore[misc]  # which elastic_launch makes
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
        # One that was asked and failed has lost what it was to keep, such as its checkpoint.
        return next((status for status in (USER_MISTAKE, FAILED) if status in asked), INTERRUPTED_STATUS)
    except RendezvousError as error:
        raise WorkError(f"no meeting of {meeting}: {error}; {advice}") from error
    return 0


def agent_type(asked: list[int]) -> "type[LocalElasticAgent]":
    """The class of an agent of torchrun that keeps how its ranks ended.

    Those that ended for a user's mistake are not started again to make it once more, and those that were asked to stop
    are waited for, however often that is asked.

    Args:
        asked: gets the exit statuses of the ranks that ended because they were asked to; negative by a signal.
    """
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    told = "timeout" in inspect.signature(LocalElasticAgent._shutdown).parameters

    class Agent(LocalElasticAgent):
        def _shutdown(self, death_sig: signal.Signals | None = None, timeout: int = FAILED_TIMEOUT_S) -> None:
            # The ranks are ending in order, and would be lost if another signal ended this process before them.
            for number in ENDS:
                signal.signal(number, signal.SIG_IGN)
            self._end(death_sig or signal.SIGTERM, timeout if told or death_sig is None else STOP_TIMEOUT_S)

        def _stop_workers(self, worker_group: WorkerGroup) -> None:
            # Other ranks may follow. A signal that comes meanwhile counts as soon as these have ended.
            came: list[int] = []
            before = {number: signal.getsignal(number) for number in ENDS}
            kept = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
            for number in kept:
                signal.signal(number, lambda number, frame: came.append(number))
            # Healthy ones make room for machines that come, and write a checkpoint before.
            healthy = worker_group.state == WorkerState.HEALTHY
            self._end(signal.SIGTERM, STOP_TIMEOUT_S if healthy else FAILED_TIMEOUT_S)
            for number, handler in kept.items():
                signal.signal(number, handler)
            if came:
                signal.raise_signal(came[0])
            asked.clear()  # what these lost, the next ones make up for

        def _end(self, death_sig: signal.Signals, timeout: int) -> None:
            """End the ranks that are there, and keep the statuses of those that still ran."""
            context = self._pcontext
            running = []
            if isinstance(context, SubprocessContext):
                handlers = context.subprocess_handlers.values()
                running = [handler.proc for handler in handlers if handler.proc.poll() is None]
            if told:
                super()._shutdown(death_sig, timeout)
            else:
                if context is not None:  # older torch gives them 30 s
                    context.close(death_sig, timeout)
                super()._shutdown(death_sig)
            asked.extend(process.returncode for process in running if process.returncode is not None)

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result: RunResult = super()._monitor_workers(worker_group)
            if any(failure.exitcode == USER_MISTAKE for failure in result.failures.values()):
                self._remaining_restarts = 0
            return result

    return Agent


@contextmanager
def hints(text: str, every_s: float) -> Iterator[None]:
    """Log `text` every minute while this process has no ranks yet: machines wait for each other silently."""
    others = set(psutil.Process().children())  # that this process had before, such as multiprocessing's helpers

    def look() -> None:
        if set(psutil.Process().children()) <= others:
            logger.warning("%s", text)

    with looking(look, every_s, "hints"):
        yield
