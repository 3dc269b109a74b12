"""A network that computes in float32 as its int8 form will in integers, so that training can make up for the rounding.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR
2018), by torchao's export path (PT2E). What is rounded is what onnxruntime's quantiser rounds, see `quantize_static`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

# Importing this module needs the extra `qat`.
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    allow_exported_model_train_eval,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.linear.default)
_SUMS = (_ATEN.add.Tensor, _ATEN.add_.Tensor)

ACTIVATION = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, averaging_constant=0.02
    ),
)
# 7 bits, since two products must fit into 16 bits on x86 without VNNI. The scales follow the weights at once.
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-64,
    quant_max=63,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
    ),
)


class IntegerLayers(Quantizer):  # type: ignore[misc]  # torchao's classes have no types
    """Marks convolutions, linear layers and, in networks of convolutions, sums: what goes in and what comes out."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the nodes of a graph."""
        nodes = [*model.graph.nodes]
        sums = () if any(node.target == _ATEN.layer_norm.default for node in nodes) else _SUMS
        for node in nodes:
            if node.target in _LAYERS:
                inputs = {node.args[0]: ACTIVATION, node.args[1]: WEIGHT}
            elif node.target in sums and all(_computed(each) for each in node.args[:2]):
                inputs = {each: ACTIVATION for each in node.args[:2]}
            else:
                continue
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=inputs, output_qspec=ACTIVATION, _annotated=True
            )
        return model

    def validate(self, model: GraphModule) -> None:
        """Every graph will do."""


def _computed(argument: object) -> bool:
    return isinstance(argument, Node) and argument.op != "get_attr"


def fake_quantized(graph: GraphModule) -> GraphModule:
    """A graph whose layers round what they take and give; ranges of activations follow what it is given.

    Args:
        graph: with its normalisations folded, see `folded_graph`; its parameters are the result's.
    """
    return cast(GraphModule, prepare_qat_pt2e(graph, IntegerLayers()))


def keep_ranges(network: nn.Module) -> None:
    """Let the ranges of activations stay as they are from now on; weights keep scales that fit them."""
    for module in network.modules():
        if isinstance(module, FusedMovingAvgObsFakeQuantize) and not module.is_per_channel:
            module.disable_observer()


class Converted(nn.Module):
    """The form with int8 weights and a pair of QuantizeLinear and DequantizeLinear at each rounding, for export.

    Args:
        network: of `fake_quantized`; not to be used any more.
    """

    def __init__(self, network: GraphModule) -> None:
        super().__init__()
        self.network = convert_pt2e(network)
        allow_exported_model_train_eval(self.network)  # or it refuses to be told that it is not training

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]."""
        return cast(Tensor, self.network(images))
