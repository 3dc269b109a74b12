"""Shorter embeddings: the numbers that matter least are left out of the last layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.prune.options import By


def last_layers(network: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The tensors whose first axis is the embedding's: those whose shape depends on its length.

    Args:
        network: embeddings of D numbers.
        other: the same, but of another length; may be on the meta device.
    """
    mine, theirs = network.state_dict(), other.state_dict()
    return {name: tensor for name, tensor in mine.items() if tensor.shape != theirs[name].shape}


def embedding_importance(network: nn.Module, last: Mapping[str, Tensor], by: By, pictures: Tensor | None) -> Tensor:
    """How much each number of an embedding matters, [D].

    Args:
        network: in evaluation mode.
        last: its last layers, see `last_layers`.
        by: magnitude: the length of the row of weights that makes it; batchnorm: the size of its scale in the last
            normalisation; first-order: how far unit embeddings of pictures move when it is left out, in the mean.
        pictures: float32 [N, 3, S, S] in [-1, 1], for first-order.

    Raises:
        UserError: the network has no such scales.
    """
    if by is By.magnitude:
        rows = next(tensor for tensor in last.values() if tensor.ndim > 1)
        lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
        return lengths
    if by is By.batchnorm:
        parameters = dict(network.named_parameters())
        norms = {name.rpartition(".")[0] for name in last if name.endswith(".running_var")}
        scales = [last[f"{norm}.weight"] for norm in sorted(norms) if f"{norm}.weight" in parameters]
        if not scales:
            raise UserError(
                "--by batchnorm: the normalisation of this network's embedding has no trained scale; use --by "
                "magnitude, or --by first-order --set SET"
            )
        return scales[-1].abs()
    if pictures is None:
        raise ValueError("first-order importance needs pictures")
    with torch.inference_mode():
        unit = torch.cat([nn.functional.normalize(network(part)) for part in pictures.split(32)])
    return unit.square().mean(dim=0).clone()


def shorten(network: nn.Module, last: Mapping[str, Tensor], kept: Tensor, shorter: nn.Module) -> None:
    """Give `shorter` the weights of `network`, of the last layers those of the numbers `kept` [k] of an embedding."""
    state = {
        name: tensor.index_select(0, kept) if name in last else tensor for name, tensor in network.state_dict().items()
    }
    shorter.load_state_dict(state)
