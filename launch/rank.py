"""The process of one rank of a job that may restart: `python -m launch.rank RUN_DIR train CONFIG ...`.

`headcount launch torchrun` and `headcount launch slurm` start ranks through this module. It translates Slurm's
environment variables to torchrun's, and distinguishes a first start from a restart: a restarted job goes on with its
run, while a new job must not touch a run directory that is in use, unless `--resume` is given.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from dist_train.errors import UserError
from dist_train.run_files import CONFIG_NAME, JOB_NAME
from dist_train.runtime.written import write_text
from launch.interrupt import end_at_once, raise_once

SLURM_NAMES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
LINGER_S = 3.0
WARNING_AGAIN_S = 0.5


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun for a task of an `srun` step; empty outside of one, and under torchrun.

    Raises:
        UserError: some of srun's variables are missing or no numbers.
    """
    if "SLURM_PROCID" not in environment or "RANK" in environment:
        return {}
    wrong = [f"{name}={environment.get(name)!r}" for name in SLURM_NAMES if not environment.get(name, "").isdecimal()]
    if wrong:
        raise UserError(
            f"half an environment of srun: {', '.join(wrong)}, expected a whole number each; start the ranks by "
            f"`headcount launch slurm` or srun, or unset {' '.join(SLURM_NAMES)} to be alone"
        )
    tasks, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), max(1, int(environment["SLURM_STEP_NUM_NODES"]))
    local_rank = int(environment["SLURM_LOCALID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(max(-(-tasks // nodes), local_rank + 1)),  # nodes may have unequal shares
    }


def begun_before(run_dir: Path, job: str, resume: bool) -> bool:
    """Whether `job` has begun the run in `run_dir` before; if not, the job is noted there as the one that begins it.

    The launchers' own counts of restarts do not tell: torchrun counts the failures of each machine by itself, and
    none when machines come or go.

    Args:
        run_dir: directory of the run.
        job: a name that no other job has.
        resume: the user wants a run that is there to be gone on with.
    """
    note = run_dir / JOB_NAME
    if (run_dir / CONFIG_NAME).exists() and not resume:
        return note.exists() and note.read_bytes() == job.encode()
    with suppress(OSError):  # the run itself will say better that it cannot write there
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(note, job)
    return False


def repeat_warnings() -> None:
    """Let the warning before a time limit, which asks for a checkpoint, neither end this process nor be lost.

    One that comes before training comes again until the trainer's handler takes it; one after training does nothing.
    """

    def again(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(WARNING_AGAIN_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGUSR2, again)


def main() -> None:
    """Run the rank that the environment describes."""
    end_at_once()
    repeat_warnings()
    run_dir, *arguments = sys.argv[1:]
    try:
        os.environ.update(slurm_ranks(os.environ))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    job = os.environ.get("TORCHELASTIC_RUN_ID") or f"slurm-{os.environ.get('SLURM_JOB_ID')}"
    first = os.environ.get("RANK") == "0"  # the only one that opens the run directory
    if first and begun_before(Path(run_dir), job, "--resume" in arguments):
        arguments.append("--resume")
    sys.argv = ["headcount", *arguments]
    from launch.cli import end, run

    raise_once()
    status = run()
    if status and "SLURM_PROCID" in os.environ:
        # srun ends all ranks when the first one fails. A little later all have failed by themselves, and what srun
        # gives back is the status that they agreed on instead of that of being killed.
        time.sleep(LINGER_S)
    end(status)


if __name__ == "__main__":
    main()
