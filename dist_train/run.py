"""A whole run on this rank: join, train, then evaluate, export and report."""

import logging
import time
from contextlib import closing

import torch.distributed as dist

from dist_train.checkpoint import newest_sound_checkpoint
from dist_train.config import RunConfig, dump_config
from dist_train.finish import finish_run
from dist_train.ranks import join_ranks, leave_ranks
from dist_train.run_dir import claim_run_dir, open_run_dir, release_run_dir
from dist_train.trainer import Trainer

logger = logging.getLogger(__name__)

INTERRUPTED_STATUS = 130
"""Exit status after a signal, as shells give it for SIGINT."""


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
    """
    started = time.monotonic()
    lock = None
    ranks = join_ranks(config.train.device, config.train.threads, config.train.timeout_s)
    try:
        if ranks.rank == 0:
            logger.info("configuration:\n%s", dump_config(config))
        # Held until the end.
        lock = ranks.agree(lambda: open_run_dir(config, resume, allow_changes) if ranks.rank == 0 else None)
        with closing(Trainer(config, ranks, newest_sound_checkpoint(config.run_dir, ranks))) as trainer:
            ranks.agree(lambda: claim_run_dir(config) if ranks.rank == 0 else None)
            if trainer.fit():
                finish_run(trainer, started)
                return 0
            if ranks.rank == 0:
                logger.warning(
                    "stopped at step %d of %d, checkpoint written; go on with the same command and --resume",
                    trainer.step,
                    trainer.total_steps,
                )
            return INTERRUPTED_STATUS
    finally:
        leave_ranks(ranks)
        if lock is not None:
            release_run_dir(config.run_dir, lock)


def lost_peer(error: BaseException) -> bool:
    """Whether `error` only says that another rank went away, so that the reason stands in that rank's output."""
    return (
        dist.is_available()
        and isinstance(error, RuntimeError)
        and any(
            sign in str(error)
            for sign in (
                "Connection closed by peer",
                "Connection reset by peer",
                "NCCL communicator was aborted",
            )
        )
    )
