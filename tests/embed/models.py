"""A tiny ONNX model whose embeddings tell pictures apart, made without an exporter, and pictures for it."""

from pathlib import Path

from onnx import TensorProto, helper

from tests.data.sets import encode, picture

SIZE = 32
DIM = 48


def write_model(path: Path, size: int = SIZE, cells: int = 4, scale: float = 1.0) -> Path:
    """The mean colours of `cells` x `cells` cells of a picture, as a model: [B, 3, S, S] -> [B, 3 * cells * cells]."""
    side = size // cells
    dim = 3 * cells * cells
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[side, side], strides=[side, side]),
        helper.make_node("Reshape", ["cells", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dim])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [-1, dim]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def write_photos(root: Path, people: int = 3, each: int = 4, size: int = SIZE) -> Path:
    """A folder of `people` folders with pictures, all different; one photo lies beside them."""
    for person in range(people):
        (root / f"person {person}").mkdir(parents=True)
        for number in range(each):
            (root / f"person {person}" / f"{number}.png").write_bytes(
                encode(picture(person * 100 + number, size), ".png")
            )
    (root / "alone.png").write_bytes(encode(picture(999, size), ".png"))
    return root
