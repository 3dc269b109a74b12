"""Whole channels left out of a network of convolutions, through the graph of what depends on what.

Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), by its authors' library torch-pruning.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.backbones.widths import layer_widths
from dist_train.errors import UserError
from dist_train.prune.options import By

_SMALL_PX = 64


def least_channels(image_size: int) -> int:
    """The fewest channels of a layer that train on CPUs: with fewer torch 2.14 dies in the backward pass."""
    return 8 if image_size <= _SMALL_PX else 16


def prune_channels(
    network: nn.Module, image_size: int, keep: float, multiple: int, by: By, gradients: Mapping[str, Tensor] | None
) -> nn.Module:
    """A copy of a network with a share of the channels of every layer; the embedding's length stays.

    Layers that are added to one another, or filter channel by channel, lose the same channels: those whose weights
    together matter least.

    Args:
        network: in evaluation mode; left as it is.
        image_size: side of its pictures in pixels.
        keep: share of the channels that is kept.
        multiple: what is kept of a layer is a multiple of it.
        by: the measure.
        gradients: by parameter, for first-order; see `first_order_gradients`.

    Raises:
        UserError: a network that is not of convolutions, or a layer would be left with too few channels.
    """
    import torch_pruning as tp

    if any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in network.modules()):
        raise UserError(
            "--scope channels is for networks of convolutions; of a transformer, --scope embedding shortens embeddings"
        )
    pruned = copy.deepcopy(network)
    if by is By.first_order:
        if gradients is None:
            raise ValueError("first-order importance needs gradients")
        for name, parameter in pruned.named_parameters():
            parameter.grad = gradients[name].clone()
    measures: dict[By, Any] = {
        By.magnitude: tp.importance.GroupMagnitudeImportance(p=2),
        By.batchnorm: tp.importance.BNScaleImportance(),
        By.first_order: tp.importance.GroupTaylorImportance(),
    }
    last = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            pruned,
            torch.zeros(2, 3, image_size, image_size),
            importance=measures[by],
            pruning_ratio=1 - keep,
            ignored_layers=[last],
            round_to=multiple,
        )
        pruner.step()
    for parameter in pruned.parameters():
        parameter.grad = None
    before, least = layer_widths(network), least_channels(image_size)
    for name, (_, leaving) in layer_widths(pruned).items():
        if leaving < min(least, before[name][1]):
            raise UserError(
                f"--keep {keep:g}: layer {name} would be left with {leaving} of {before[name][1]} channels, expected "
                f"{least} or more at {image_size} px; take --multiple {least}, or a larger --keep"
            )
    return pruned.eval()
