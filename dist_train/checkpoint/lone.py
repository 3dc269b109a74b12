"""A checkpoint of a backbone alone, written at once by one process: of a network that no training has made."""

import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn

from dist_train.checkpoint.load import backbone_names
from dist_train.checkpoint.store import Progress, write_checksums, write_progress
from dist_train.config import RunConfig
from dist_train.runtime.written import written_directory


def write_backbone(checkpoint: Path, backbone: nn.Module, config: RunConfig, progress: Progress) -> None:
    """Write a checkpoint that `load_backbone` reads; it appears by rename, complete.

    Args:
        checkpoint: its directory, which must not exist.
        backbone: the network.
        config: the recipe that will lie beside it.
        progress: where the run stood that the network comes from.

    Raises:
        OSError: the disk refuses.
    """
    section, names = backbone_names(config, backbone)
    state = {section: {names[name]: tensor for name, tensor in backbone.state_dict().items()}}
    with written_directory(checkpoint) as home, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.save(state, checkpoint_id=home, no_dist=True)
        write_progress(home, progress)
        write_checksums(home, 0, 1)
