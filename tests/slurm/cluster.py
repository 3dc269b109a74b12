"""A real Slurm of two nodes on this machine: two slurmd on ports of their own, one slurmctld, one munged.

Debian's slurmctld, slurmd, slurm-client and munge (`make slurm`), started as root with all their files in one
directory, so that nothing of the machine's own configuration is touched.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.ranks import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=2 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes=n[0-1] MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    absent = [name for name in PROGRAMS if not _program(name)]
    if absent:
        return f"not installed: {', '.join(absent)} (make slurm)"
    return None if os.geteuid() == 0 else "a Slurm of one's own needs root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """While entered, `environment` leads Slurm's commands to this cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"SLURM_CONF": str(directory / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        here = self.directory
        (here / "state").mkdir(parents=True)
        here.chmod(0o755)  # munged refuses a directory that others may write to
        (here / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname().split(".")[0],
                directory=here,
                controller_port=free_port(),
                ports=(free_port(), free_port()),
            )
        )
        (here / "munge.key").write_bytes(os.urandom(128))
        (here / "munge.key").chmod(0o400)
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        munge = [f"--{option}={here}/munge.{ending}" for option, ending in files.items()]
        try:
            self._start("munged", "--foreground", "--force", *munge)
            self.wait_until(lambda: (here / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D", "-i")
            for node in ("n0", "n1"):
                self._start("slurmd", "-D", "-N", node)
            self.wait_until(
                lambda: self.run("sinfo", "-h", "-p", "low", "-o", "%t %D").split() == ["idle", "2"], "nodes"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """One of the values that `scontrol show job` gives; empty for an unknown job."""
        words = dict(word.partition("=")[::2] for word in self.run("scontrol", "show", "job", "-o", job).split())
        return words.get(name, "")

    def state(self, job: str) -> str:
        """A job's state, e.g. RUNNING."""
        return self.field(job, "JobState")

    def wait_for(self, job: str, *states: str, timeout_s: float = 120) -> None:
        """Wait until a job is in one of `states`."""
        self.wait_until(lambda: self.state(job) in states, f"job {job} to be {states}", timeout_s)

    def _start(self, name: str, *arguments: str) -> None:
        output = (self.directory / f"{name}{len(self._daemons)}.out").open("wb")
        command = [_program(name) or name, *arguments]
        self._daemons[output.name] = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s} s for {what}; see the logs in {self.directory}")
            time.sleep(0.2)
