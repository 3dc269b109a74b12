"""The pretrained weights that come with this package: `weights.npz`, 496,000 numbers, float32.

Source: the package `mtcnn` 1.0.0 on PyPI by Iván de Paz Centeno, MIT License (`LICENSE-mtcnn.txt`), which carries the
networks published by the authors of the paper. `convert.py` made the file; no value was changed.
"""

from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import nn

WEIGHTS = Path(str(resources.files("data_prep.mtcnn"))) / "weights.npz"


def load_weights(**networks: nn.Module) -> None:
    """Fill networks, given by name (`pnet`, `rnet`, `onet`), with the pretrained weights."""
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        for name, network in networks.items():
            prefix = f"{name}."
            network.load_state_dict(
                {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)}
            )
