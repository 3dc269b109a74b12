"""What the rows of a head start from: a run, one of its checkpoints, or exported centers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from dist_train.checkpoint.identities import head_identities
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.rows import StoredTable
from dist_train.checkpoint.store import read_progress
from dist_train.config import load_config
from dist_train.data.identities import read_identities
from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.margins.table import MARGINS
from dist_train.head.optimizers import build_tables
from dist_train.head.sizes import row_width
from dist_train.run_files import CONFIG_NAME, IDENTITIES_NAME
from dist_train.runtime.ranks import Ranks
from dist_train.start.centers import CENTERS_SUFFIX, ExportedCenters, centers_beside
from dist_train.start.place import find_place


class RowTable(Protocol):
    """A table [C, width] whose rows are read by number.

    Attributes:
        shape: (C, width).
    """

    shape: tuple[int, int]

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows [n], sorted, -> [n, width]."""
        ...


class RowShape(NamedTuple):
    """What the numbers of a class are: K centers of D numbers, each with a bias or not."""

    embedding_dim: int
    centers_per_class: int
    biased: bool


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A head that another one starts from.

    Attributes:
        key: of the recipe that names it, for messages.
        path: of the checkpoint or file, for messages.
        classes: of the head.
        shape: of a class's row in `centers`.
        tables: `centers`, and the optimizer's state by name where there is one.
        margin: its margin, whose moving averages are in the checkpoint; None where there is no checkpoint.
        names_at: where the identities' names are.
        names: reads label and name of the identities.
    """

    key: str
    path: Path
    classes: int
    shape: RowShape
    tables: Mapping[str, RowTable]
    margin: str | None
    names_at: Path
    names: Callable[[], pa.Table]


def row_shape(head: HeadConfig, embedding_dim: int) -> RowShape:
    """The shape of a class's row in a head by that configuration."""
    return RowShape(embedding_dim, head.centers_per_class, not MARGINS[head.margin].normalised)


def open_head_source(
    path: Path, run_dir: Path, ranks: Ranks, checked: Path | None = None, key: str = "start.head"
) -> HeadSource:
    """What a key of the recipe names, opened on every rank. A collective: the ranks share the checking of files.

    Args:
        path: a run directory, one checkpoint, or exported centers.
        run_dir: of the run that starts.
        ranks: this process among the job's.
        checked: what `find_place` has found there before; None if nothing has looked yet.
        key: of the recipe that names it.

    Raises:
        UserError: nothing to start from is there, or it is the run that starts.
        WorkError: a damaged checkpoint or file.
    """
    if checked is None:
        checked = find_place(key, path, run_dir, f"exported centers (NAME{CENTERS_SUFFIX})", ranks)
    return ranks.agree(lambda: _of_checkpoint(checked, key) if checked.is_dir() else _of_file(checked, key))


def _of_checkpoint(checkpoint: Path, key: str) -> HeadSource:
    run_dir = checkpoint.resolve().parent.parent
    progress = read_progress(checkpoint)
    config = load_config(run_dir / CONFIG_NAME)
    if config.head is None:
        raise UserError(
            f"{key}: {run_dir} was trained without a head (head: null); start.backbone alone can take that run"
        )
    stored = read_tensors(checkpoint)
    specs = build_tables(config.head, row_width(config.head, config.backbone.embedding_dim))
    # A state that the recipe names may lack, if another optimizer was taken on the way; centers may not.
    tables = {
        spec.name: StoredTable(checkpoint, f"head.{spec.name}")
        for spec in specs
        if spec.name == "centers" or f"head.{spec.name}" in stored
    }
    for spec in specs:
        expected = (progress.num_classes, spec.width)
        if spec.name in tables and tables[spec.name].shape != expected:
            raise UserError(
                f"{key}: checkpoint {checkpoint}: head.{spec.name} is {list(tables[spec.name].shape)}, expected "
                f"{list(expected)} by the {CONFIG_NAME} of its run; bring back the one that it was trained with"
            )
    return HeadSource(
        key,
        checkpoint,
        progress.num_classes,
        row_shape(config.head, config.backbone.embedding_dim),
        tables,
        config.head.margin,
        run_dir / IDENTITIES_NAME,
        lambda: head_identities(run_dir, config, progress),
    )


def _of_file(path: Path, key: str) -> HeadSource:
    centers, names = centers_beside(path)
    table = ExportedCenters(centers)
    return HeadSource(
        key,
        centers,
        table.shape[0],
        RowShape(table.embedding_dim, table.centers_per_class, biased=False),
        {"centers": table},
        None,
        names,
        lambda: read_identities(names, "name", table.shape[0]),
    )


def check_same_rows(source: HeadSource, head: HeadConfig, embedding_dim: int) -> None:
    """See that the rows of `source` fit a head of that configuration.

    Raises:
        UserError: they do not; with both values.
    """
    there, here = source.shape, row_shape(head, embedding_dim)
    keys = ("backbone.embedding_dim", "head.centers_per_class")
    differences = [
        f"{key} is {old} there and {new} here" for key, old, new in zip(keys, there, here, strict=False) if old != new
    ]
    if there.biased != here.biased:
        bias = {True: "have a bias, as those of head.margin=softmax", False: "have none"}
        differences.append(f"rows there {bias[there.biased]}, here head.margin={head.margin}: they {bias[here.biased]}")
    if differences:
        lengths = there.embedding_dim != here.embedding_dim and source.key == "start.head"
        projected = (
            "; a teacher of another length is followed through a projection: objectives.distill" if lengths else ""
        )
        raise UserError(
            f"{source.key}: the rows of {source.path} do not fit: {'; '.join(differences)}; take the same values, or "
            f"start without {source.key}{projected}"
        )
