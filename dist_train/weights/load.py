"""A network from a file of weights that says which one it is: what `checkpoint export` and `average` write."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.backbones.config import AnyBackboneConfig, BackboneConfig
from dist_train.data.manifest import MAX_SIDE_PX
from dist_train.errors import UserError
from dist_train.runtime.files import first_fault
from dist_train.weights.files import read_weights
from dist_train.weights.fit import fit_weights

NETWORK_KEY, SIDE_KEY = "network", "image_size"
"""Entries of a safetensors header: the recipe's section `backbone` as JSON, and the side of the pictures in pixels."""

_NETWORK: TypeAdapter[BackboneConfig] = TypeAdapter(AnyBackboneConfig)
_SIDE: TypeAdapter[int] = TypeAdapter(int, config={"strict": False})


def load_network(path: Path) -> tuple[nn.Module, BackboneConfig, int]:
    """The network in a `.safetensors` file, on the CPU in evaluation mode; its section of a recipe; its pictures' side.

    Raises:
        UserError: another kind of file, a damaged one, one that does not say its network, or weights of another one.
    """
    weights = read_weights(path)
    missing = [key for key in (NETWORK_KEY, SIDE_KEY) if key not in weights.about]
    if missing:
        raise UserError(
            f"{path}: its header does not say {' and '.join(missing)}, as files by `headcount checkpoint export` do; "
            "use it by start.backbone in a recipe that names its network"
        )
    try:
        section = _NETWORK.validate_json(weights.about[NETWORK_KEY])
        side = _SIDE.validate_python(weights.about[SIDE_KEY])
    except ValidationError as error:
        raise UserError(f"{path}: its header names no network of ours: {first_fault(error)}") from None
    if not 1 <= side <= MAX_SIDE_PX:
        raise UserError(f"{path}: its header says pictures of {side} px, expected 1 .. {MAX_SIDE_PX}")
    network = build_backbone(section, side)
    fit = fit_weights(weights.state, network.state_dict(), section)
    if misfits := fit.misfits():
        raise UserError(f"{path}: its weights are not of the network that its header names:{misfits}")
    network.load_state_dict(fit.tensors, strict=False)
    return network.eval(), section, side
