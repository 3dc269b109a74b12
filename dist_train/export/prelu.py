"""PReLU in a form that onnxruntime computes fast."""

import numpy as np
import onnx
from onnx import numpy_helper


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
