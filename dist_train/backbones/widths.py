"""Networks with fewer channels than their names stand for: what each layer has left, and how it is built."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dist_train.errors import UserError

Widths = Mapping[str, tuple[int, int]]
"""Name of a layer -> numbers that enter it and leave it: channels, or features of a linear layer."""

KEY = "backbone.channels"
_LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU)


def layer_widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    """What enters and leaves each layer of a network that can be narrowed."""
    return {name: _width(module) for name, module in network.named_modules() if isinstance(module, _LAYERS)}


def _width(module: nn.Module) -> tuple[int, int]:
    match module:
        case nn.Conv2d():
            return module.in_channels, module.out_channels
        case nn.Linear():
            return module.in_features, module.out_features
        case _BatchNorm():
            return module.num_features, module.num_features
        case nn.PReLU():
            return module.num_parameters, module.num_parameters
    raise TypeError(type(module).__name__)


def narrow(network: nn.Module, widths: Widths, image_size: int) -> None:
    """Leave the first channels of layers alone, in place.

    Args:
        network: as its name stands for.
        widths: of the layers that have fewer; the others stay.
        image_size: side of its pictures in pixels.

    Raises:
        UserError: a layer that the network does not have, more channels than it has, or layers that do not fit one
            another.
    """
    for name, (entering, leaving) in widths.items():
        try:
            module = network.get_submodule(name)
        except AttributeError:
            raise UserError(
                f"{KEY}: the network has no layer {name!r}; take the section of a pruned run whole"
            ) from None
        if not isinstance(module, _LAYERS):
            raise UserError(f"{KEY}: {name} is a {type(module).__name__}, which has no channels of its own")
        now = _width(module)
        if not (1 <= entering <= now[0] and 1 <= leaving <= now[1]):
            raise UserError(f"{KEY}: {name} is [{entering}, {leaving}], expected at most {list(now)} and at least 1")
        _narrow_layer(name, module, entering, leaving)
    if widths:
        _check_fit(network, image_size)


def _narrow_layer(name: str, module: nn.Module, entering: int, leaving: int) -> None:
    match module:
        case nn.Conv2d():
            if module.groups == module.in_channels == module.out_channels and entering == leaving:
                module.groups, per_group = entering, 1  # a filter for each channel
            elif entering % module.groups or leaving % module.groups:
                raise UserError(
                    f"{KEY}: {name} is [{entering}, {leaving}], expected multiples of {module.groups} groups"
                )
            else:
                per_group = entering // module.groups
            module.in_channels, module.out_channels = entering, leaving
            _keep(module, "weight", leaving, per_group)
            _keep(module, "bias", leaving)
        case nn.Linear():
            module.in_features, module.out_features = entering, leaving
            _keep(module, "weight", leaving, entering)
            _keep(module, "bias", leaving)
        case _BatchNorm() | nn.PReLU():
            if entering != leaving:
                raise UserError(f"{KEY}: {name} is [{entering}, {leaving}], expected the same number twice")
            setattr(module, "num_features" if isinstance(module, _BatchNorm) else "num_parameters", leaving)
            for each in ("weight", "bias", "running_mean", "running_var"):
                _keep(module, each, leaving)


def _keep(module: nn.Module, name: str, *sizes: int) -> None:
    """Keep the first entries of a parameter or buffer, where there is one."""
    tensor = getattr(module, name, None)
    if not isinstance(tensor, Tensor):
        return
    kept = tensor.detach()[tuple(slice(size) for size in sizes)].clone()
    setattr(module, name, nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept)


def _check_fit(network: nn.Module, image_size: int) -> None:
    """See that what leaves a layer can enter the next, by shapes alone."""
    try:
        with torch.no_grad():
            shadow = copy.deepcopy(network).to("meta").eval()
            shadow(torch.empty(2, 3, image_size, image_size, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"{KEY}: the layers do not fit one another at {image_size} px: {str(error).splitlines()[0]}; take the "
            "section of a pruned run whole, with pictures of its size"
        ) from error
