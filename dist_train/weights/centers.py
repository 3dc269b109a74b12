"""A run's class centers and the names of their identities, as they are handed on."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from dist_train.checkpoint.errors import DCP_ERRORS, last_line
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.reader import load_tensors
from dist_train.checkpoint.store import Progress
from dist_train.config import RunConfig
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME, load_manifest
from dist_train.data.remote import is_remote
from dist_train.errors import UserError, WorkError
from dist_train.weights.write import Blocks

_BLOCK_BYTES = 16 << 20


def load_centers(checkpoint: Path) -> Tensor:
    """Class centers as stored: [C, K·width], in the type of the rows.

    Raises:
        WorkError: a damaged checkpoint.
    """
    try:
        entry = read_tensors(checkpoint)["head.centers"]
        state = {"head": {"centers": torch.empty(entry.size, dtype=entry.properties.dtype)}}
        load_tensors(state, checkpoint, alone=True)
    except DCP_ERRORS as error:
        raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {last_line(error)}") from error
    return state["head"]["centers"]


def plain_centers(checkpoint: Path, config: RunConfig) -> Blocks:
    """The centers alone, float32 [C, D], or [C, K, D] where identities have several.

    Raises:
        UserError: they are not those of the configuration.
        WorkError: a damaged checkpoint.
    """
    stored = load_centers(checkpoint)
    k, dim = config.head.centers_per_class, config.backbone.embedding_dim
    if stored.dim() != 2 or stored.shape[1] not in (k * dim, k * (dim + 1)):
        raise UserError(
            f"checkpoint {checkpoint}: rows of centers are {list(stored.shape)}, expected {k} x {dim} numbers each; "
            "bring back the configuration that the run was trained with"
        )
    shape = (len(stored), dim) if k == 1 else (len(stored), k, dim)
    return Blocks(shape, torch.float32, _without_bias(stored, k, shape))


def _without_bias(stored: Tensor, k: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Blocks of rows as float32; behind the centers of a softmax with bias stands the bias."""
    count = max(1, _BLOCK_BYTES // max(1, 4 * stored.shape[1]))
    for block in stored.split(count):
        rows = block.unflatten(1, (k, -1))[:, :, : shape[-1]]  # [n, K·width] -> [n, K, D]
        yield rows.float().reshape(-1, *shape[1:]).contiguous()


def identity_names(checkpoint: Path, config: RunConfig, progress: Progress) -> pa.Table:
    """Label and name of the classes of a checkpoint's head, by label.

    The run's own table says them; for a run without one the set that it names, if that is still the same.

    Raises:
        UserError: nothing says them.
    """
    path = checkpoint.parent.parent / IDENTITIES_NAME
    if not path.exists():
        path = _in_the_set(checkpoint, config, progress)
    return read_identities(path, "name", progress.num_classes).select(["label", "name"]).sort_by("label")


def _in_the_set(checkpoint: Path, config: RunConfig, progress: Progress) -> Path:
    run_dir = checkpoint.parent.parent
    data = config.data.path
    if config.data.mix:
        reason = "it was trained on several sets"
    elif is_remote(data):
        reason = f"its set is at {data}; bring the {IDENTITIES_NAME} of it here"
    else:
        try:
            digest = load_manifest(data).digest
        except UserError as error:
            reason = str(error)
        else:
            if digest == progress.data_digest and (Path(data) / IDENTITIES_NAME).exists():
                return Path(data) / IDENTITIES_NAME
            reason = f"set {data} has no {IDENTITIES_NAME}"
            if digest != progress.data_digest:
                reason = f"set {data} is not the one that the checkpoint was made on, {progress.data_digest[:12]}"
    raise UserError(
        f"--centers: {run_dir} keeps no {IDENTITIES_NAME}, and centers without names are of no use: {reason}; "
        "leave --centers out to export the backbone alone"
    )
