"""The directory of a run: one run in one directory, and the configuration that it was made with."""

import logging
import os
from pathlib import Path

from dist_train.checkpoint import CONFIG_NAME, committed_checkpoints
from dist_train.config import RunConfig, differences, dump_config, load_config
from dist_train.errors import UserError

logger = logging.getLogger(__name__)


def open_run_dir(config: RunConfig, resume: bool) -> Path | None:
    """Make the run directory, or with `resume` enter the one that is there. Call it on rank 0 only.

    Returns:
        The newest checkpoint to go on from; None for a start from the beginning.

    Raises:
        UserError: it cannot be written, holds another run, or was made with another configuration.
    """
    directory = config.run_dir
    stored = directory / CONFIG_NAME
    _check_writable(directory)
    if stored.exists() and not resume:
        raise UserError(
            f"run_dir {directory} holds another run; continue it with --resume, or name another: run_dir=PATH"
        )
    if resume and not stored.exists():
        raise UserError(
            f"run_dir {directory} holds no run to resume ({CONFIG_NAME} is missing); start without --resume"
        )
    if resume:
        changed = differences(load_config(stored), config)
        if changed:
            raise UserError(
                f"run_dir {directory} was made with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nresume with the same one, or start a new run in another run_dir"
            )
        found = committed_checkpoints(directory)
        if not found:
            logger.warning("no checkpoint in %s yet; starting from the beginning", directory)
        return found[-1] if found else None
    temporary = stored.with_suffix(".tmp")
    temporary.write_text(dump_config(config), encoding="utf-8")
    temporary.replace(stored)
    return None


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
