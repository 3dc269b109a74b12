"""The place that `start.backbone` or `start.head` names: a run, one of its checkpoints, or a file."""

import os
from pathlib import Path

from dist_train.checkpoint.load import newest_sound_checkpoint
from dist_train.checkpoint.store import committed_checkpoints, damage
from dist_train.errors import UserError, WorkError
from dist_train.run_files import METADATA_NAME
from dist_train.runtime.ranks import Ranks


def find_place(key: str, path: Path, run_dir: Path, file_kind: str, ranks: Ranks) -> Path:
    """The checkpoint, or the file, to start from. A collective, in which the ranks share the checking of files.

    Args:
        key: of the recipe, for messages.
        path: what the key names.
        run_dir: of the run that starts.
        file_kind: what a file may be, for messages.
        ranks: this process among the job's.

    Returns:
        A checkpoint whose files are as they were written, or `path`, which is a file.

    Raises:
        UserError: nothing to start from is there, or it is the run that starts.
        WorkError: a damaged checkpoint, or a run without any other.
    """
    ranks.agree(lambda: _check(key, path, run_dir, file_kind))
    is_checkpoint, is_dir = ranks.gather(((path / METADATA_NAME).exists(), path.is_dir()))[0]
    if not is_dir:
        return path
    if is_checkpoint:
        wrong = [line for lines in ranks.gather(damage(path, ranks.rank, ranks.world_size)) for line in lines]
        found = None if wrong else path
        reason = f"is damaged: {'; '.join(wrong[:1])}"
    else:
        found = newest_sound_checkpoint(path, ranks)
        reason = "every checkpoint there is damaged"
    with ranks.first_speaks():
        if found is None:
            raise WorkError(f"{key} {path}: {reason}; start from another one")
    return found


def _check(key: str, path: Path, run_dir: Path, file_kind: str) -> None:
    """See that there is something to start from which is not the run itself."""
    ways = f"give a run directory that has a checkpoint, one checkpoint, or {file_kind}"
    if not path.exists():
        raise UserError(f"{key} {path}: no such file or directory; {ways}")
    if run_dir.exists() and any(os.path.samefile(each, run_dir) for each in (path, *path.resolve().parents)):
        raise UserError(
            f"{key} {path}: lies in the run's own run_dir {run_dir}; to go on with that run use --resume, to start "
            "another one from it name another directory: run_dir=PATH"
        )
    if path.is_dir() and not (path / METADATA_NAME).exists() and not committed_checkpoints(path):
        raise UserError(f"{key} {path}: a directory without checkpoints; {ways}")
