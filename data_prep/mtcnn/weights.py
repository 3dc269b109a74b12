"""Files of the cascade's weights: the pretrained ones that come with this package, and those of one's own training.

`weights.npz` has 496,000 numbers, float32. Source: the package `mtcnn` 1.0.0 on PyPI by Iván de Paz Centeno, MIT
License (`LICENSE-mtcnn.txt`), which carries the networks published by the authors of the paper. `convert.py` made the
file; no value was changed.

A trained one is a `.safetensors` of the tensors `pnet.*`, `rnet.*` and `onet.*`, float32, whose header says what it is.
"""

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from data_prep.mtcnn.networks import ONet, PNet, RNet
from dist_train.errors import UserError
from dist_train.runtime.files import first_fault
from dist_train.runtime.text import shown
from dist_train.weights.files import read_weights
from dist_train.weights.write import write_weights

WEIGHTS = Path(str(resources.files("data_prep.mtcnn"))) / "weights.npz"
THRESHOLDS = (0.6, 0.7, 0.7)
"""Lowest scores that the pretrained networks are used with, as their authors do."""
KIND_KEY, KIND = "kind", "headcount.mtcnn"
RECIPE_KEY, SETS_KEY, THRESHOLDS_KEY = "recipe", "sets", "thresholds"
_MOST_BYTES = 16 << 20  # of a trained file; the networks take 2 MB, a recipe at most 256 kB

_Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_SHARES: TypeAdapter[tuple[float, float, float]] = TypeAdapter(tuple[_Share, _Share, _Share])


class Networks(NamedTuple):
    """The three networks of a cascade.

    Attributes:
        pnet: proposes.
        rnet: refines.
        onet: gives the faces.
        thresholds: lowest scores of each that are meant to be accepted.
    """

    pnet: PNet
    rnet: RNet
    onet: ONet
    thresholds: tuple[float, float, float] = THRESHOLDS

    def by_name(self) -> dict[str, nn.Module]:
        """The networks by the names under which files hold them."""
        return {"pnet": self.pnet, "rnet": self.rnet, "onet": self.onet}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of all three, under the names that files have."""
        return {
            f"{name}.{key}": tensor
            for name, network in self.by_name().items()
            for key, tensor in network.state_dict().items()
        }


def open_networks(weights: Path | None = None) -> Networks:
    """The networks of a file, on the CPU; None: the pretrained ones.

    Raises:
        UserError: no such file, another kind of file, a damaged one, or weights of another network.
    """
    if weights is not None:
        return read_networks(weights)
    networks = Networks(PNet(), RNet(), ONet())
    load_weights(**networks.by_name())
    return networks


def load_weights(**networks: nn.Module) -> None:
    """Fill networks, given by name (`pnet`, `rnet`, `onet`), with the pretrained weights."""
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        for name, network in networks.items():
            prefix = f"{name}."
            network.load_state_dict(
                {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)}
            )


def read_networks(path: Path) -> Networks:
    """The networks of a trained file, on the CPU, with the thresholds that were chosen for them.

    Raises:
        UserError: as `open_networks`.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: expected the .safetensors of a detector by `headcount prep train-detector`")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if size > _MOST_BYTES:
        raise UserError(f"{path}: {size:,} bytes, a detector's weights have at most {_MOST_BYTES:,}; refused")
    found = read_weights(path)
    if found.about.get(KIND_KEY) != KIND:
        raise UserError(
            f"{path}: its header says {KIND_KEY} {shown(found.about.get(KIND_KEY))}, expected {KIND}; give a detector "
            "by `headcount prep train-detector`"
        )
    try:
        thresholds = _SHARES.validate_json(found.about.get(THRESHOLDS_KEY, ""))
    except ValidationError as error:
        raise UserError(
            f"{path}: its {THRESHOLDS_KEY} are no three numbers between 0 and 1: {first_fault(error)}"
        ) from None
    networks = Networks(PNet(), RNet(), ONet(), thresholds)
    expected = networks.state_dict()
    check_tensors(path, found.state, expected)
    for name, network in networks.by_name().items():
        network.load_state_dict({key: found.state[f"{name}.{key}"].clone() for key in network.state_dict()})
    return networks


def write_networks(path: Path, networks: Networks, about: Mapping[str, str]) -> None:
    """Write a trained file, by rename.

    Args:
        path: ends in `.safetensors`.
        networks: what is written, with its thresholds.
        about: what the header says besides, e.g. the recipe.

    Raises:
        UserError: another suffix, or no such directory.
        WorkError: the disk refuses.
    """
    header = {KIND_KEY: KIND, THRESHOLDS_KEY: "[" + ", ".join(f"{each:.6g}" for each in networks.thresholds) + "]"}
    write_weights(path, networks.state_dict(), dict(about) | header)


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """See that a file's tensors are those that networks take.

    Args:
        path: of the file, for messages.
        found: its tensors.
        expected: of the networks.

    Raises:
        UserError: tensors are missing, are too many, or of another type or shape, or hold no finite numbers.
    """
    for what, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has, besides what a detector has,", found.keys() - expected.keys()),
    ):
        if names:
            some = ", ".join(shown(name) for name in sorted(names)[:4])
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(f"{path}: it {what} {some}{more}; it is of another network")
    for name, tensor in expected.items():
        given = found[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise UserError(
                f"{path}: {name} is {given.dtype} {list(given.shape)}, expected {tensor.dtype} {list(tensor.shape)}; "
                "it is of another network"
            )
        if not math.isfinite(float(given.double().abs().sum())):
            raise UserError(f"{path}: {name} holds numbers that are not finite; train it again")
