"""ONNX files of a few bytes that embed a picture's mean colour."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_color_model(path, size=16, dim=8, seed=0, scale=1.0):
    """images [B, 3, size, size] -> mean colours times a random matrix [3, dim]; a `scale` of nan gives nan."""
    mixer = (np.random.default_rng(seed).normal(size=(3, dim)) * scale).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["colors"], keepdims=0),
        helper.make_node("MatMul", ["colors", "mixer"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(mixer, "mixer")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path
