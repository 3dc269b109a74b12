"""The command `headcount launch status`: the state of jobs and runs."""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dist_train.errors import UserError, WorkError
from dist_train.run_files import CONFIG_NAME, LOCK_NAME, METRICS_NAME, SLURM_JOBS_NAME, SUMMARY_NAME
from dist_train.runtime.lock import is_held
from dist_train.runtime.terminal import echo
from launch.slurm import JOB_PREFIX, run_slurm

TAIL_BYTES = 1 << 16  # of metrics.jsonl; its last lines are wanted, and a long run has millions
LARGEST = 1e18  # of any figure that is believed
SQUEUE_FORMAT = "%i|%T|%M|%l|%D|%R|%j"
SACCT_FORMAT = "JobIDRaw,State,Elapsed,Timelimit,NNodes,ExitCode,JobName"
COLUMNS = ("job", "state", "time", "limit", "nodes", "where or why", "name")


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run, from its own files.

    Attributes:
        step: optimizer steps done, by the last figures; 0 before the first.
        total_steps: of the whole run; None while it is not known.
        loss: mean since the figures before.
        images_per_s: over all ranks.
        seconds_left: at that rate; None while it is not known.
        figures_age_s: seconds since the last figures; None before the first.
        checkpoint: step and age in seconds of the newest checkpoint; None before the first.
        exporting: evaluated and reported by a job that is still at work.
        finished: evaluated and reported, and no job is at work.
    """

    step: int
    total_steps: int | None
    loss: float | None
    images_per_s: float | None
    seconds_left: float | None
    figures_age_s: float | None
    checkpoint: tuple[int, float] | None
    exporting: bool
    finished: bool

    def __str__(self) -> str:
        """One line for people."""
        parts = ["evaluated, now exporting"] if self.exporting else ["finished"] if self.finished else []
        total = f" of {self.total_steps} ({self.step / self.total_steps:.0%})" if self.total_steps else ""
        parts.append(f"step {self.step}{total}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.images_per_s is not None:
            parts.append(f"{self.images_per_s:,.0f} images/s")
        if self.seconds_left is not None and not (self.exporting or self.finished):
            parts.append(f"{duration(self.seconds_left)} left")
        if self.figures_age_s is not None:
            parts.append(f"last figures {duration(self.figures_age_s)} ago")
        if self.checkpoint is None:
            parts.append("no checkpoint yet")
        else:
            parts.append(f"newest checkpoint step {self.checkpoint[0]}, {duration(self.checkpoint[1])} old")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least 2 of it: `90 s`, `45 min`, `30 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def run_state(run_dir: Path, now: float) -> RunState | None:
    """The state of the run in `run_dir` at the time `now`, in seconds since 1970; None if it has not begun."""
    from dist_train.checkpoint.store import committed_checkpoints, read_progress
    from dist_train.config import load_config

    if not (run_dir / CONFIG_NAME).exists():
        return None
    config = load_config(run_dir / CONFIG_NAME)
    figures = last_figures(run_dir / METRICS_NAME)
    step = int(_number(figures, "step") or 0)
    total, rate, epoch = config.train.steps, _number(figures, "images_per_s"), _number(figures, "epoch")
    if total is None and epoch:
        total = max(1, round(min(LARGEST, (config.train.epochs or 0) * step / epoch)))
    found = committed_checkpoints(run_dir)
    summary, lock = run_dir / SUMMARY_NAME, run_dir / LOCK_NAME
    reported, at_work = summary.exists(), is_held(lock)
    return RunState(
        step=step,
        total_steps=total,
        loss=_number(figures, "loss", least=-LARGEST),
        images_per_s=rate,
        seconds_left=(total - step) * config.train.global_batch_size / rate if total and rate else None,
        figures_age_s=now - (run_dir / METRICS_NAME).stat().st_mtime if figures else None,
        checkpoint=(read_progress(found[-1]).step, now - found[-1].stat().st_mtime) if found else None,
        # A job writes the lock file when it begins: an older summary is that of a job before it.
        exporting=reported and at_work and summary.stat().st_mtime_ns >= lock.stat().st_mtime_ns,
        finished=reported and not at_work,
    )


def _number(figures: dict[str, Any], key: str, least: float = 0) -> float | None:
    """A figure; None if it is missing or not a number, because the file was damaged or the step was refused."""
    value = figures.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
        return None
    return value


def last_figures(path: Path) -> dict[str, Any]:
    """The last line of `metrics.jsonl` that has a loss; empty if there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            figures = json.loads(line)
        except (ValueError, RecursionError):  # a line cut off by a kill, or by where the tail begins
            continue
        if isinstance(figures, dict) and "loss" in figures:
            return figures
    return {}


def user_jobs() -> list[list[str]]:
    """This user's jobs that Slurm has in memory, ended ones for some minutes too; a row of `COLUMNS` each."""
    text = run_slurm("squeue", "--me", "--states=all", "--noheader", f"--format={SQUEUE_FORMAT}")
    return [line.split("|", len(COLUMNS) - 1) for line in text.splitlines()]


def jobs_of(run_dir: Path) -> list[list[str]]:
    """The jobs that were submitted for a run, a row of `COLUMNS` each.

    What the queue has forgotten is asked of Slurm's accounting, which not every cluster keeps.
    """
    note = run_dir / SLURM_JOBS_NAME
    if not note.exists():
        return []
    numbers = [word for word in note.read_text(encoding="utf-8", errors="replace").split() if word.isdecimal()]
    reason = "neither in the queue nor in Slurm's accounting"
    queued: list[list[str]] = []
    try:
        queued = user_jobs()
    except (WorkError, UserError) as error:
        reason = str(error)
    rows = {number: [number, "UNKNOWN", "", "", "", reason, ""] for number in numbers}
    options = ("-X", "--noheader", "--parsable2", f"--format={SACCT_FORMAT}", f"--jobs={','.join(numbers)}")
    with suppress(WorkError, UserError):
        rows |= {row[0]: row for row in (line.split("|") for line in run_slurm("sacct", *options).splitlines())}
    return list((rows | {row[0]: row for row in queued if row[0] in rows}).values())


def table(rows: list[list[str]]) -> str:
    """Rows below their headings, in columns."""
    every = [list(COLUMNS), *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in every)
    return "\n".join(line.rstrip() for line in lines)


def _run_dir_of(job: str) -> Path | None:
    """Where a job writes its log, which is its run directory."""
    words = dict(word.partition("=")[::2] for word in run_slurm("scontrol", "show", "job", "-o", job).split())
    log = Path(words.get("StdOut", ""))
    return log.parent if (log.parent / SLURM_JOBS_NAME).exists() else None


def status(
    run_dir: Annotated[Path | None, typer.Argument(help="run directory; by default those of all your jobs")] = None,
) -> None:
    """Show the state of training jobs under Slurm, and the progress of their runs.

    Examples:

      headcount launch status

      headcount launch status runs/quickstart
    """
    if run_dir is None:
        jobs = [row for row in user_jobs() if row[-1].startswith(JOB_PREFIX)]
        found = (_run_dir_of(row[0]) for row in jobs)
        run_dirs = list(dict.fromkeys(path for path in found if path is not None))
        if not jobs:
            echo("no training jobs; for a run that is no Slurm job: headcount launch status RUN_DIR")
    else:
        jobs, run_dirs = jobs_of(run_dir), [run_dir]
    if jobs:
        echo(table(jobs))
    for path in run_dirs:
        state = run_state(path, time.time())
        if state is None and not jobs:
            raise UserError(f"run_dir {path}: no run has begun there, and no job was submitted for it")
        echo(f"{path}: {state or 'not begun'}")
