"""The directory of a run: one run in one directory, and the configuration that it was made with."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from dist_train.checkpoint.store import remove_leftovers
from dist_train.config import RunConfig, differences, dump_config, load_config
from dist_train.data.manifest import MANIFEST_NAME
from dist_train.data.names import class_names
from dist_train.errors import UserError, WorkError
from dist_train.run_files import CONFIG_NAME, IDENTITIES_NAME, LOCK_NAME
from dist_train.runtime.lock import HeldError, Lock, NoLocksError
from dist_train.runtime.written import write_text, written

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 30.0
"""A run that was killed may take a moment to be gone."""
RESTART_COUNTERS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def restarted() -> bool:
    """Whether torchrun or Slurm has started this job again, after a failure or a preemption."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTERS)


def open_run_dir(config: RunConfig, resume: bool, allow_changes: bool) -> Lock | None:
    """Make the run directory, or with `resume` look whether the one that is there may go on. Call it on rank 0 only.

    Returns:
        The lock on the directory; None where the file system has no locks.

    Raises:
        UserError: it cannot be written, is in use, holds another run, or was made with another configuration.
    """
    directory = config.run_dir
    _check_writable(directory)
    lock = _lock(directory)
    try:
        _check_run(config, resume, allow_changes)
        remove_leftovers(directory)
    except BaseException:
        if lock is not None:
            release_run_dir(directory, lock)
        raise
    return lock


def release_run_dir(directory: Path, lock: Lock) -> None:
    """Give the lock back. Where no run has begun, nothing of it stays behind."""
    if not (directory / CONFIG_NAME).exists():
        (directory / LOCK_NAME).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: somebody's files
            directory.rmdir()
    lock.close()


def _check_run(config: RunConfig, resume: bool, allow_changes: bool) -> None:
    directory = config.run_dir
    stored = directory / CONFIG_NAME
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

    Before it, where no run has begun there yet, the names of the head's classes, so that they outlive the set.

    Raises:
        UserError: the disk refuses.
    """
    stored = config.run_dir / CONFIG_NAME
    if not stored.exists():
        _keep_names(config)
    try:
        write_text(stored, dump_config(config))
    except OSError as error:
        raise UserError(f"run_dir {config.run_dir}: cannot write {CONFIG_NAME}: {error.strerror}") from error


def _keep_names(config: RunConfig) -> None:
    """Write `identities.parquet` of the head's classes; a set without names has none, which training does not need."""
    kept = config.run_dir / IDENTITIES_NAME
    if (config.run_dir / MANIFEST_NAME).exists():
        logger.warning("run_dir %s is the directory of a set, whose %s stays", config.run_dir, IDENTITIES_NAME)
        return
    kept.unlink(missing_ok=True)  # of a start that was cut off, maybe on another set
    try:
        table = class_names(config.data)
    except (UserError, WorkError) as error:
        logger.warning("no names of identities are kept, so that no other run can start.head from this one: %s", error)
        return
    if table is None:
        return
    try:
        with written(kept) as file:
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise UserError(f"run_dir {config.run_dir}: cannot write {IDENTITIES_NAME}: {error.strerror}") from error


def _lock(directory: Path) -> Lock | None:
    """Two runs that write into one directory would spoil each other's checkpoints."""
    try:
        return Lock(directory / LOCK_NAME, LOCK_WAIT_S)
    except HeldError as error:
        raise UserError(
            f"run_dir {directory} is in use by {error.holder or 'another run'}; wait for that run or end it, or name "
            "another directory: run_dir=PATH"
        ) from error
    except NoLocksError as error:
        logger.info("run_dir %s: no locks on this file system (%s)", directory, error.strerror)
        return None


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
