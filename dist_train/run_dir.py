"""The directory of a run: one run in one directory, and the configuration that it was made with."""

import logging
import os
from pathlib import Path

from dist_train.checkpoint import CONFIG_NAME
from dist_train.config import RunConfig, differences, dump_config, load_config
from dist_train.errors import UserError

logger = logging.getLogger(__name__)

RESTART_COUNTERS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def restarted() -> bool:
    """Whether torchrun or Slurm has started this job again, after a failure or a preemption."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTERS)


def open_run_dir(config: RunConfig, resume: bool, allow_changes: bool) -> None:
    """Make the run directory, or with `resume` look whether the one that is there may go on. Call it on rank 0 only.

    Raises:
        UserError: it cannot be written, holds another run, or was made with another configuration.
    """
    directory = config.run_dir
    stored = directory / CONFIG_NAME
    _check_writable(directory)
    if stored.exists():
        if not resume and not restarted():
            raise UserError(
                f"run_dir {directory} holds another run; continue it with --resume, or name another: run_dir=PATH"
            )
        _check_same(directory, load_config(stored), config, allow_changes)
    elif resume:
        raise UserError(
            f"run_dir {directory} holds no run to resume ({CONFIG_NAME} is missing); start without --resume"
        )


def claim_run_dir(config: RunConfig) -> None:
    """Write the configuration, which makes the directory this run's. Call it on rank 0, once the run can begin.

    Raises:
        UserError: the disk refuses.
    """
    stored = config.run_dir / CONFIG_NAME
    temporary = stored.with_suffix(".tmp")
    try:
        temporary.write_text(dump_config(config), encoding="utf-8")
        temporary.replace(stored)
    except OSError as error:
        raise UserError(f"run_dir {config.run_dir}: cannot write {CONFIG_NAME}: {error.strerror}") from error


def _check_same(directory: Path, old: RunConfig, new: RunConfig, allow_changes: bool) -> None:
    changed = differences(old, new)
    if changed and not allow_changes:
        raise UserError(
            f"run_dir {directory} was made with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nresume with the same one, accept the changes with --allow-changes, or start anew in another run_dir"
        )
    for line in changed:
        logger.warning("resuming with a changed configuration: %s", line)


def _check_writable(directory: Path) -> None:
    probe = directory / f".probe-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run_dir {directory}: cannot write there: {error.strerror}; name another: run_dir=PATH"
        ) from error
