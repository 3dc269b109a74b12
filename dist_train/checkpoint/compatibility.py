"""The older network whose embeddings those of a run can be compared with, as a checkpoint states it."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from dist_train.checkpoint.errors import DCP_ERRORS, last_line
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.reader import load_tensors
from dist_train.errors import WorkError

COMPATIBLE_KEY = "compatible_with"
"""What headers and metadata of exported files call it, and the part of a checkpoint that has it."""
_BYTES = 32


def from_digest(digest: str) -> Tensor:
    """A hexadecimal SHA-256 as uint8 [32], as a checkpoint holds it."""
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def compatible_with(checkpoint: Path) -> str:
    """The hexadecimal SHA-256 of the older network's weights; empty where the run was not trained to be compatible.

    Raises:
        WorkError: a damaged checkpoint.
    """
    name = f"{COMPATIBLE_KEY}.model"
    try:
        stored = read_tensors(checkpoint)
        if name not in stored or list(stored[name].size) != [_BYTES]:
            return ""
        found = torch.empty(_BYTES, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            load_tensors({COMPATIBLE_KEY: {"model": found}}, checkpoint, alone=True)
    except DCP_ERRORS as error:
        raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {last_line(error)}") from error
    return bytes(found.tolist()).hex()
