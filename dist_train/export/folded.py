"""A network as a graph of operations, with the normalisations behind its layers folded into them."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from dist_train.errors import UserError
from dist_train.export.trace import example_input, free_batch, quiet_exporter

_ATEN = torch.ops.aten
_FUSE: dict[Any, Callable[..., tuple[nn.Parameter, nn.Parameter]]] = {
    _ATEN.conv2d.default: fuse_conv_bn_weights,
    _ATEN.linear.default: fuse_linear_bn_weights,
}


def folded_graph(network: nn.Module, image_size: int) -> GraphModule:
    """The same function as `network` in evaluation mode, with parameters of its own that can be trained.

    What is deployed has no BatchNorm behind a convolution: its statistics are part of the weights. Training what is
    deployed, they stay as they are.

    Args:
        network: images [B, 3, S, S] -> embeddings [B, D], in evaluation mode; left as it is.
        image_size: S, in pixels.

    Raises:
        UserError: a BatchNorm without running statistics.
        Exception: of torch.export, for a network that is no graph of operations.
    """
    with quiet_exporter():
        program = export(network, (example_input(network, image_size, False),), dynamic_shapes=free_batch())
    graph = program.module(check_guards=False)
    for name, parameter in [*graph.named_parameters()]:  # those of the program are the network's own
        _put(graph, name, nn.Parameter(parameter.detach().clone()))
    tensors = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    for node in [*graph.graph.nodes]:
        if node.target == _ATEN.batch_norm.default:
            layer = cast(Node, node.args[0])
            if layer.target in _FUSE and len(layer.users) == 1:
                _fold(graph, layer, node, tensors)
            else:
                _spread(graph, node, tensors)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _fold(graph: GraphModule, layer: Node, norm: Node, tensors: dict[str, Tensor]) -> None:
    """Give `layer` the weights that do its work and that of `norm`, and take `norm` out."""
    image, weight, *rest = cast(tuple[Any, ...], layer.args)
    scale, shift = (_tensor(tensors, each) for each in norm.args[1:3])
    mean, variance = _statistics(tensors, norm)
    scale = torch.ones_like(mean) if scale is None else scale
    shift = torch.zeros_like(mean) if shift is None else shift
    bias = _tensor(tensors, rest[0]) if rest else None
    made = _FUSE[layer.target](_tensor(tensors, weight), bias, mean, variance, norm.args[7], scale, shift)
    with graph.graph.inserting_before(layer):
        nodes = [
            _parameter(graph, f"{norm.name}_{name}", value)
            for name, value in zip(("weight", "bias"), made, strict=True)
        ]
    layer.args = (image, *nodes, *rest[1:])
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _spread(graph: GraphModule, norm: Node, tensors: dict[str, Tensor]) -> None:
    """Write a normalisation that has no layer before it as the product and the sum that it is.

    Of maps that is a convolution of one channel and one pixel, which computes in integers like any other.
    """
    image, *rest = cast(tuple[Any, ...], norm.args)
    scale, shift = (_tensor(tensors, each) for each in rest[:2])
    mean, variance = _statistics(tensors, norm)
    factor = torch.rsqrt(variance + rest[6]) * (1 if scale is None else scale)
    offset = (0 if shift is None else shift) - mean * factor
    maps = image.meta["val"].ndim == 4
    with graph.graph.inserting_before(norm):
        factor_node, offset_node = (
            _parameter(graph, f"{norm.name}_{name}", value)
            for name, value in (("weight", factor.view(-1, 1, 1, 1) if maps else factor), ("bias", offset))
        )
        if maps:
            sizes = ([1, 1], [0, 0], [1, 1], len(factor))  # stride, padding, dilation, groups
            result = graph.graph.call_function(_ATEN.conv2d.default, (image, factor_node, offset_node, *sizes))
        else:
            product = graph.graph.call_function(_ATEN.mul.Tensor, (image, factor_node))
            result = graph.graph.call_function(_ATEN.add.Tensor, (product, offset_node))
    result.meta["val"] = norm.meta["val"]  # torchao rounds no node of an unknown kind
    norm.replace_all_uses_with(result)
    graph.graph.erase_node(norm)


def _statistics(tensors: dict[str, Tensor], norm: Node) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a BatchNorm, each [C]."""
    mean, variance = (_tensor(tensors, each) for each in norm.args[3:5])
    if mean is None or variance is None:
        raise UserError(
            f"--int8 trained: {norm.name} of the network normalises by its batch; expected a BatchNorm with running "
            "statistics: train it with track_running_stats=True, or take --int8 static"
        )
    return mean, variance


def _tensor(tensors: dict[str, Tensor], argument: object) -> Tensor | None:
    return tensors[str(argument.target)] if isinstance(argument, Node) else None


def _parameter(graph: GraphModule, name: str, value: Tensor) -> Node:
    """A new parameter, and the node that reads it."""
    graph.register_parameter(name, nn.Parameter(value.detach().clone()))
    return graph.graph.get_attr(name)


def _put(graph: GraphModule, name: str, parameter: nn.Parameter) -> None:
    home, _, own = name.rpartition(".")
    setattr(graph.get_submodule(home), own, parameter)
