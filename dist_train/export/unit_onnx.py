"""An exported network that adds the mirrored picture and gives unit length itself: nothing is left to who serves it."""

import copy

import onnx
from onnx import TensorProto, helper

from dist_train.export.convention import Convention

_INNER = "headcount_"  # of names that the network's own cannot have
_INT64_MIN = -(1 << 63)


def with_unit_output(model: onnx.ModelProto, convention: Convention) -> onnx.ModelProto:
    """Images [B, ...] -> embeddings [B, D] = (f(images) + f(mirrored images)) / its length.

    This is what `headcount embed` compares by. The network computes the picture and its mirror image in one batch of
    2B. Its input and output keep their names.

    Args:
        model: of one input and one output [B, D], with a free batch axis; left as it was.
        convention: what it takes and gives.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    images, embeddings = graph.input[0].name, graph.output[0].name
    both, rows = f"{_INNER}both", f"{_INNER}rows"
    for node in graph.node:
        for names, outer, inner in ((node.input, images, both), (node.output, embeddings, rows)):
            for at, name in enumerate(names):
                if name == outer:
                    names[at] = inner
    width_axis = 3 if convention.layout == "NCHW" else 2
    for name, values in {
        "last": [-1],
        "before_first": [_INT64_MIN],
        "width": [width_axis],
        "backwards": [-1],
        "pairs": [2, -1, convention.embedding_dim],
        "first": [0],
        "across": [1],
    }.items():
        graph.initializer.append(helper.make_tensor(_INNER + name, TensorProto.INT64, [len(values)], values))
    graph.initializer.append(helper.make_tensor(f"{_INNER}least", TensorProto.FLOAT, [], [1e-12]))
    mirror = [_INNER + name for name in ("last", "before_first", "width", "backwards")]
    before = [
        helper.make_node("Slice", [images, *mirror], [f"{_INNER}mirrored"]),
        helper.make_node("Concat", [images, f"{_INNER}mirrored"], [both], axis=0),  # [2B, ...]
    ]
    after = [
        helper.make_node("Reshape", [rows, f"{_INNER}pairs"], [f"{_INNER}two"]),  # [2B, D] -> [2, B, D]
        helper.make_node("ReduceSum", [f"{_INNER}two", f"{_INNER}first"], [f"{_INNER}sum"], keepdims=0),
        # LpNormalization would be one node, but onnxruntime has it on CPUs only.
        helper.make_node("ReduceL2", [f"{_INNER}sum", f"{_INNER}across"], [f"{_INNER}length"]),
        helper.make_node("Max", [f"{_INNER}length", f"{_INNER}least"], [f"{_INNER}divisor"]),
        helper.make_node("Div", [f"{_INNER}sum", f"{_INNER}divisor"], [embeddings]),
    ]
    inside = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *inside, *after])
    del graph.value_info[:]  # stated for a batch of B; runtimes find the shapes out themselves
    return model
