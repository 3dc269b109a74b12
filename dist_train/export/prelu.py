"""PReLU in forms that onnxruntime computes fast."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_BLOCK = 16  # channels that onnxruntime's convolutions for CPUs keep side by side, at most
_MOST_BYTES = 1 << 30  # of a file whose graph is changed in memory; a message of protobuf holds 2 GiB


def spread_prelu(model: onnx.ModelProto) -> int:
    """Replace each PReLU whose slopes are all at most 1 by max(x, slope * x), which is the same function.

    onnxruntime's PReLU takes about 5 ns an element, its product and maximum together 0.3 to 1 ns. A face network has a
    PReLU after every other convolution. Slopes above 1, which training hardly ever makes, keep their PReLU.

    Args:
        model: changed in place.

    Returns:
        How many were replaced.
    """
    slopes = {each.name: each for each in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    replaced = 0
    for node in model.graph.node:
        slope = slopes.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is None or np.max(numpy_helper.to_array(slope), initial=-np.inf) > 1:
            nodes.append(node)
            continue
        product, (result,) = f"{node.output[0]}_scaled", node.output
        name = node.name or result
        nodes.append(onnx.helper.make_node("Mul", list(node.input), [product], name=f"{name}_scale"))
        nodes.append(onnx.helper.make_node("Max", [node.input[0], product], [result], name=f"{name}_max"))
        replaced += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replaced


def with_quick_prelu(path: Path) -> bytes | None:
    """An ONNX file whose PReLUs after convolutions are convolutions themselves, for onnxruntime on a CPU.

    onnxruntime keeps the channels of convolutions in blocks, and has no PReLU for these: before each one it moves all
    channels apart, and back after it. In a MobileFaceNet that, and the PReLU, takes three fifths of the time. With
    slope a of each channel

        PReLU(x) = x + (1 - a) relu(-x)

    whose two products are convolutions of one channel and one pixel. Above 0 it is the same to the bit, below 0 up to
    the rounding of float32; NaN stays NaN.

    Args:
        path: of the file; it is not changed.

    Returns:
        The changed file; None where there is nothing to gain: no such PReLU, quantised, weights in other files, or
        no ONNX file at all.
    """
    if path.stat().st_size > _MOST_BYTES:
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own kinds; onnxruntime says it in its words
        return None
    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    if any(onnx.external_data_helper.uses_external_data(each) for each in weights.values()):
        return None
    makers = {name: node for node in graph.node for name in node.output}
    if any("QuantizeLinear" in node.op_type for node in graph.node):
        return None
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        slope = _slope(node, weights, makers)
        nodes += [node] if slope is None else _as_convolutions(graph, node, slope)
    if len(nodes) == len(graph.node):
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _slope(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], makers: dict[str, onnx.NodeProto]
) -> np.ndarray | None:
    """The slopes [C, 1, 1] of a PReLU after a convolution, as blocks of channels; None of all other nodes."""
    if node.op_type != "PRelu" or node.input[1] not in weights:
        return None
    maker = makers.get(node.input[0])
    if maker is not None and maker.op_type == "BatchNormalization":
        maker = makers.get(maker.input[0])
    kernel = weights.get(maker.input[1]) if maker is not None and maker.op_type == "Conv" else None
    if kernel is None or len(kernel.dims) != 4:
        return None
    slope = numpy_helper.to_array(weights[node.input[1]])
    shape = slope.shape[1:] if slope.ndim == 4 and slope.shape[0] == 1 else slope.shape
    fits = shape == (kernel.dims[0], 1, 1) and kernel.dims[0] % _BLOCK == 0 and slope.dtype == np.float32
    return slope.reshape(shape) if fits else None


def _as_convolutions(graph: onnx.GraphProto, node: onnx.NodeProto, slope: np.ndarray) -> list[onnx.NodeProto]:
    """The nodes of x + (1 - a) relu(-x); their weights go into the graph."""
    x, (result,) = node.input[0], node.output
    minus, below, part, rest, lifted = (f"{result}_{name}" for name in ("minus", "below", "part", "rest", "lifted"))
    ones = np.ones((len(slope), 1, 1, 1), np.float32)
    graph.initializer.extend(
        [numpy_helper.from_array(-ones, minus), numpy_helper.from_array(ones - slope[:, None], rest)]
    )
    make, groups = onnx.helper.make_node, len(slope)
    return [
        make("Conv", [x, minus], [f"{below}_sum"], group=groups, kernel_shape=[1, 1]),
        make("Relu", [f"{below}_sum"], [below]),
        make("Conv", [below, rest], [part], group=groups, kernel_shape=[1, 1]),
        make("Add", [part, x], [result], name=node.name or lifted),
    ]
