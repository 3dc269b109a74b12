"""The command `headcount launch slurm`: jobs that outlive their time limit and their nodes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError, WorkError
from dist_train.run_files import CHECKPOINTS_NAME, CONFIG_NAME, SLURM_JOBS_NAME, SLURM_LOG_NAME, SLURM_SCRIPT_NAME
from dist_train.runtime.processes import SAFE_PATH, threads
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS
from dist_train.runtime.terminal import echo
from dist_train.runtime.text import shown
from dist_train.runtime.written import write_text
from launch.options import AllowChanges, Resume, going_on
from launch.torchrun import check_ranks, node_range

TEMPLATE = "slurm.sh.j2"
JOB_PREFIX = "headcount-"

# Slurm's time formats: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")

_NAME = re.compile("[a-z][a-z0-9-]*")  # of an option
_SPECIAL = re.compile(r"[^\w@%+=:,./-]")  # for sbatch, in an option's value


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A training job to be submitted.

    Attributes:
        run_dir: directory of the run; the log goes there too.
        nodes: smallest and largest number of nodes.
        gpus_per_node: 0 for CPU jobs.
        procs_per_node: ranks of a node.
        cpus_per_task: cores of a rank.
        signal_before_s: seconds before the time limit at which the ranks are asked for a checkpoint.
        requeue: queue the job again when it was stopped before its end.
        options: further options of sbatch, without dashes, e.g. `partition=gpu`.
    """

    run_dir: Path
    nodes: tuple[int, int]
    gpus_per_node: int
    procs_per_node: int
    cpus_per_task: int
    signal_before_s: int
    requeue: bool
    options: tuple[str, ...]

    def script(self, command: Sequence[str]) -> str:
        """The batch script that runs `headcount COMMAND` on every rank.

        Raises:
            UserError: a value would add lines or options to it.
        """
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("launch", ""), trim_blocks=True, keep_trailing_newline=True, autoescape=False
        )
        run_dir = self.run_dir.absolute()
        for part in command:
            if not part.isprintable():
                raise UserError(f"{shown(part)} has line ends or other control characters, which no recipe needs")
        return environment.get_template(TEMPLATE).render(
            options=self._options(run_dir),
            variables=" ".join(f"{name}={value}" for name, value in (SAFE_PATH | threads(self.cpus_per_task)).items()),
            python=shlex.quote(sys.executable),
            command=shlex.join([sys.executable, "-m", "launch.rank", str(run_dir), *command]),
            checkpoints=shlex.quote(str(run_dir / CHECKPOINTS_NAME)),
            procs_per_node=self.procs_per_node,
            cpus_per_task=self.cpus_per_task,
            signal_before_s=self.signal_before_s,
            patience_s=self.signal_before_s * 3 // 4,
            requeue=self.requeue,
            interrupted_status=INTERRUPTED_STATUS,
        )

    def _options(self, run_dir: Path) -> list[str]:
        low, high = self.nodes
        options = [
            f"job-name={JOB_PREFIX}{run_dir.name}",
            f"nodes={low}" if low == high else f"nodes={low}-{high}",
            f"ntasks-per-node={self.procs_per_node}",
            f"cpus-per-task={self.cpus_per_task}",
            *([f"gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            f"signal=B:USR1@{self.signal_before_s}",
            "requeue" if self.requeue else "no-requeue",
            f"output={run_dir / SLURM_LOG_NAME}",
            "open-mode=append",
        ]
        return [_quoted(option) for option in [*options, *self.options]]


def _quoted(option: str) -> str:
    """An option as sbatch reads it in a script, where blanks, quotes, `#` and line ends have a meaning.

    Raises:
        UserError: its name is none, or its value cannot be quoted.
    """
    name, equals, value = option.partition("=")
    if not _NAME.fullmatch(name):
        raise UserError(f"option of sbatch {shown(option)}: expected NAME or NAME=VALUE, e.g. qos=high")
    if not value.isprintable() or set(value) & set('"\\'):
        where = "run_dir" if name in ("job-name", "output") else f"option of sbatch {name}"
        raise UserError(
            f"{where}: {shown(value)} has quotes, backslashes or line ends, which a batch script cannot hold"
        )
    return f'{name}{equals}"{value}"' if _SPECIAL.search(value) else option


def submit(job: SlurmJob, script: str) -> str:
    """Submit the script by sbatch, and return the job's number, which is also noted in the run directory.

    Raises:
        UserError: sbatch is not there or refuses the job, or the run directory cannot be written.
    """
    path = job.run_dir / SLURM_SCRIPT_NAME
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(path, script)
    except OSError as error:
        raise UserError(
            f"run_dir {job.run_dir}: cannot write there: {error.strerror}; name another: run_dir=PATH"
        ) from error
    number = run_slurm("sbatch", "--parsable", str(path)).strip().partition(";")[0]
    with (job.run_dir / SLURM_JOBS_NAME).open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    return number


def run_slurm(*command: str) -> str:
    """Output of one of Slurm's commands.

    Raises:
        UserError: it is not installed.
        WorkError: it failed; with its own message.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on this machine; run this on a node from which Slurm is used") from error
    if done.returncode:
        raise WorkError(f"{shlex.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def slurm(
    config: Annotated[Path, typer.Argument(help="recipe to train by, e.g. configs/quickstart.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe with other values: section.key=value ...")
    ] = None,
    nodes: Annotated[str, typer.Option(help="number of nodes: N, or MIN:MAX to take as many as are free")] = "1",
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="GPUs of a node, with a rank for each; 0 trains on CPUs")
    ] = 8,
    procs_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks of a node; by default one for each GPU, or 1 without GPUs")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="cores of a rank, its data workers included")] = 8,
    time: Annotated[str | None, typer.Option(help="time limit as Slurm writes it, e.g. 24:00:00 or 7-0")] = None,
    partition: Annotated[str | None, typer.Option(help="partition to run in; by default that of the cluster")] = None,
    account: Annotated[str | None, typer.Option(help="account that is charged for the job")] = None,
    signal_before: Annotated[
        int, typer.Option(min=10, help="how many seconds before the time limit a checkpoint is written")
    ] = 120,
    requeue: Annotated[bool, typer.Option(help="whether a job that was stopped goes back to the queue")] = True,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="further option for sbatch, e.g. qos=high; repeat for more")
    ] = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the batch script and end")] = False,
) -> None:
    """Submit a training job to Slurm that writes checkpoints, goes back to the queue and resumes until it is done.

    Before the time limit, on preemption and when a node or rank is lost, the job goes back to the queue and continues
    from its checkpoint. The log of all starts is RUN_DIR/slurm-JOB.log. Ask for a checkpoint and a fresh start by
    `scancel --signal=USR1 --batch JOB`; `scancel JOB` ends the job.

    Examples:

      headcount launch slurm configs/glint360k_r100.yaml --nodes 2 --time 24:00:00 train.global_batch_size=2048

      headcount launch slurm configs/glint360k_r100.yaml --sbatch qos=preemptible --sbatch constraint=h100

      headcount launch slurm configs/quickstart.yaml --gpus-per-node 0 --procs-per-node 2 --dry-run
    """
    from dist_train.config import load_config

    settings = load_config(config, overrides or [])
    run_dir = settings.run_dir
    if (run_dir / CONFIG_NAME).exists() and not resume:
        raise UserError(
            f"run_dir {run_dir} holds another run; continue it with --resume, or name another: run_dir=PATH"
        )
    if time is not None and not _TIME.fullmatch(time):
        raise UserError(f"--time {time}: expected MINUTES, HH:MM:SS or DAYS-HH[:MM[:SS]], e.g. 24:00:00 or 7-0")
    node_count, procs = node_range(nodes), procs_per_node or gpus_per_node or 1
    if settings.train.device == "cuda" and gpus_per_node < procs:
        raise UserError(f"train.device=cuda: --gpus-per-node {gpus_per_node} for {procs} ranks of a node; ask for more")
    check_ranks(settings, node_count, procs)
    named = {"time": time, "partition": partition, "account": account}
    options = [f"{name}={value}" for name, value in named.items() if value is not None]
    options += [option.removeprefix("--") for option in sbatch or []]
    job = SlurmJob(
        run_dir=run_dir,
        nodes=node_count,
        gpus_per_node=gpus_per_node,
        procs_per_node=procs,
        cpus_per_task=cpus_per_task,
        signal_before_s=signal_before,
        requeue=requeue,
        options=tuple(options),
    )
    command = ["train", str(config.absolute()), *(overrides or []), *going_on(resume, allow_changes)]
    script = job.script(command)
    if dry_run:
        echo(script, nl=False)
        return
    number = submit(job, script)
    log = run_dir / SLURM_LOG_NAME.replace("%j", number)
    echo(f"job {number}; script: {run_dir / SLURM_SCRIPT_NAME}; log: {log}; headcount launch status {run_dir}")
