"""A whole run on this rank: join, train, then evaluate, export and report."""

import logging
import time
from contextlib import closing
from pathlib import Path

import torch.distributed as dist

from dist_train.checkpoint.load import checkpoint_to_resume
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import RunConfig, dump_config
from dist_train.errors import WorkError
from dist_train.export.config import check_exporter
from dist_train.run_files import ONNX_NAME, REPORT_NAME, SUMMARY_NAME
from dist_train.runtime.quiet import quiet_libraries
from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS
from dist_train.runtime.watchdog import launcher_watched
from dist_train.train.build import open_training
from dist_train.train.finish import finish_run
from dist_train.train.loop import Loop
from dist_train.train.run_dir import claim_run_dir, open_run_dir, release_run_dir

logger = logging.getLogger(__name__)


@launcher_watched()
def run(config: RunConfig, resume: bool, allow_changes: bool = False) -> int:
    """Train by `config` and finish the run.

    Args:
        config: the whole configuration.
        resume: go on from the newest sound checkpoint in `run_dir`; implied when torchrun or Slurm restarts the job.
        allow_changes: resume although the configuration differs from the one that the run was made with.

    Returns:
        Exit status: 0, or 130 when a signal ended training early, after a checkpoint.

    Raises:
        UserError: on rank 0, for a mistake that any rank found; the others leave silently.
        WorkError: likewise, where training failed, or came to its end without all of its results.
    """
    started = time.monotonic()
    lock = None
    quiet_libraries()
    ranks = join_ranks(config.train.device, config.train.threads, config.train.timeout_s)
    try:
        if ranks.rank == 0:
            logger.info("configuration:\n%s", dump_config(config))
        # Held until the end.
        ranks.agree(lambda: check_exporter(config.export) if ranks.rank == 0 else None)
        lock = ranks.agree(lambda: open_run_dir(config, resume, allow_changes) if ranks.rank == 0 else None)
        checkpoint = checkpoint_to_resume(config.run_dir, ranks)
        if ranks.rank == 0 and (resume or checkpoint is not None):
            _say_start(config, checkpoint)
        with closing(open_training(config, ranks, checkpoint)) as loop:
            ranks.agree(lambda: claim_run_dir(config) if ranks.rank == 0 else None)
            done = loop.fit()
            if done:
                loop.lost += finish_run(config, loop.outcome(), ranks, loop.trackers, started)
            _say_losses(loop)
            if done:
                return 0
            if ranks.rank == 0:
                logger.warning(
                    "stopped at step %d of %d, checkpoint written; go on with the same command and --resume",
                    loop.step,
                    loop.total_steps,
                )
            return INTERRUPTED_STATUS
    finally:
        leave_ranks(ranks)
        if lock is not None:
            release_run_dir(config.run_dir, lock)


def _say_start(config: RunConfig, checkpoint: Path | None) -> None:
    """Tell what a run that goes on takes its weights from, where its recipe also says what to start from."""
    keys = [f"start.{key}" for key in ("backbone", "head") if getattr(config.start, key) is not None]
    if not keys:
        return
    if checkpoint is None:
        logger.info("run_dir %s has no checkpoint to go on from: %s applies", config.run_dir, " and ".join(keys))
    else:
        logger.info("%s is not read: the run's own checkpoint %s wins", " and ".join(keys), checkpoint)


def _say_losses(loop: Loop) -> None:
    """Raise a WorkError on all ranks where results of the run are missing. A collective."""
    run_dir = loop.config.run_dir
    lost = loop.ranks.gather(loop.lost)[0]  # rank 0 writes, so it knows
    if not lost:
        return
    if loop.ranks.rank != 0:
        raise SystemExit(1)
    there = [path.name for path in committed_checkpoints(run_dir)[-1:]]
    made = (name for name in (SUMMARY_NAME, REPORT_NAME, ONNX_NAME) if (run_dir / name).exists())
    there += [name for name in made if not any(line.startswith(name) for line in lost)]
    raise WorkError(
        f"run {run_dir}: stopped at step {loop.step} of {loop.total_steps}, but not all is there:"
        + "".join(f"\n  lost: {line}" for line in lost)
        + f"\nthere are: {', '.join(there) or 'no results'}; mend what is named and give the same command with "
        "--resume, which goes on from the newest checkpoint and makes the results anew"
    )


def lost_peer(error: BaseException) -> bool:
    """Whether `error` only says that another rank went away or is silent, so that the reason stands in its output."""
    return (
        dist.is_available()
        and isinstance(error, RuntimeError)
        and any(
            sign in str(error)
            for sign in (
                "Connection closed by peer",
                "Connection reset by peer",
                "NCCL communicator was aborted",
                "Timed out waiting",  # gloo, of one that neither answers nor ends
            )
        )
    )
