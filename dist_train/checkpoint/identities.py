"""The names of the identities that a stored head has classes of."""

from pathlib import Path

import pyarrow as pa

from dist_train.checkpoint.store import Progress
from dist_train.config import RunConfig
from dist_train.data.config import DataConfig
from dist_train.data.identities import read_identities
from dist_train.data.manifest import MANIFEST_NAME
from dist_train.data.names import class_names
from dist_train.data.sources import open_sources
from dist_train.errors import UserError
from dist_train.run_files import IDENTITIES_NAME


def head_identities(run_dir: Path, config: RunConfig, progress: Progress) -> pa.Table:
    """Label and name of the classes of a run's head, from the run's directory.

    Runs of versions that did not keep the names there have them in their sets, as long as those lie where they lay.

    Args:
        run_dir: of the run.
        config: its recipe.
        progress: of its checkpoint, which says how many classes there are and on which set.

    Raises:
        UserError: there are no names, or no sound ones.
    """
    path = run_dir / IDENTITIES_NAME
    if path.exists():
        return read_identities(path, "name", progress.num_classes)
    data = config.data.model_copy(update={"check_at_start": False})
    if _lies_here(data) and open_sources(data).manifest.digest == progress.data_digest:
        table = class_names(data)
        if table is not None:
            return table
    raise UserError(
        f"run {run_dir}: no {IDENTITIES_NAME} in it, and its set {config.data.path} is no longer there or has none "
        "either, so that nobody knows which identity a class is; write one there with columns label and name"
    )


def _lies_here(data: DataConfig) -> bool:
    """Whether all sets are folders with a manifest: another's recipe makes us ask no address, and index nothing."""
    return all((Path(path) / MANIFEST_NAME).is_file() for path in (data.path, *(source.path for source in data.mix)))
