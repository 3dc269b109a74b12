"""A run's class centers and the names of their identities, as they are handed on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dist_train.checkpoint.identities import head_identities
from dist_train.checkpoint.rows import StoredTable
from dist_train.checkpoint.store import Progress
from dist_train.config import RunConfig
from dist_train.errors import UserError
from dist_train.weights.write import Blocks

_BLOCK_BYTES = 16 << 20


def plain_centers(checkpoint: Path, config: RunConfig) -> Blocks:
    """The centers alone, float32 [C, D], or [C, K, D] where identities have several.

    Raises:
        UserError: they are not those of the configuration.
        WorkError: a damaged checkpoint.
    """
    if config.head is None:
        raise UserError("--centers: the run has no head (head: null); leave --centers out to export the backbone alone")
    stored = StoredTable(checkpoint, "head.centers")
    k, dim = config.head.centers_per_class, config.backbone.embedding_dim
    classes, width = stored.shape
    if width not in (k * dim, k * (dim + 1)):
        raise UserError(
            f"checkpoint {checkpoint}: rows of centers are {list(stored.shape)}, expected {k} x {dim} numbers each; "
            "bring back the configuration that the run was trained with"
        )
    shape = (classes, dim) if k == 1 else (classes, k, dim)
    return Blocks(shape, torch.float32, _without_bias(stored, k, shape))


def _without_bias(stored: StoredTable, k: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Blocks of rows as float32; behind the centers of a softmax with bias stands the bias."""
    classes, width = stored.shape
    count = max(1, _BLOCK_BYTES // max(1, 4 * width))
    for start in range(0, classes, count):
        block = stored.take(np.arange(start, min(start + count, classes)))
        rows = block.unflatten(1, (k, -1))[:, :, : shape[-1]]  # [n, K·width] -> [n, K, D]
        yield rows.float().reshape(-1, *shape[1:]).contiguous()


def identity_names(checkpoint: Path, config: RunConfig, progress: Progress) -> pa.Table:
    """Label and name of the classes of a checkpoint's head, by label.

    Raises:
        UserError: nothing says them.
    """
    try:
        table = head_identities(checkpoint.parent.parent, config, progress)
    except UserError as error:
        raise UserError(f"--centers: {error}; or leave --centers out to export the backbone alone") from error
    return table.select(["label", "name"]).sort_by("label")
