"""PReLU as convolutions: the same embeddings, NaN included, and graphs that are left as they are."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dist_train.export.prelu import with_quick_prelu
from dist_train.export.runtime import OnnxModel

SIZE, CHANNELS = 8, 32
pytestmark = pytest.mark.unit


def write_model(path, slope_shape=(CHANNELS, 1, 1), channels=CHANNELS, extra=()):
    """Convolution, normalisation, PReLU with slopes from -0.5 to 1.8, and the mean of each channel."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(size=(channels, 3, 3, 3)),
        "scale": random.uniform(0.5, 2, channels),
        "shift": random.normal(size=channels),
        "mean": random.normal(size=channels),
        "var": random.uniform(0.5, 2, channels),
        "slope": np.linspace(-0.5, 1.8, int(np.prod(slope_shape))).reshape(slope_shape),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["sum"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["sum", "scale", "shift", "mean", "var"], ["normal"]),
        helper.make_node("PRelu", ["normal", "slope"], ["bent"]),
        *extra,
        helper.make_node("GlobalAveragePool", ["bent"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", channels, 1, 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("shape", [(CHANNELS, 1, 1), (1, CHANNELS, 1, 1)])
def test_embeddings_are_those_of_the_graph_as_written(tmp_path, shape):
    path = write_model(tmp_path / "m.onnx", shape)
    changed = onnx.load_from_string(with_quick_prelu(path))
    assert "PRelu" not in {node.op_type for node in changed.graph.node}
    images = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = OnnxModel(path, as_written=True)(images)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(OnnxModel(path)(images), expected, rtol=0, atol=2e-6)


def test_a_network_that_computes_nan_still_does(tmp_path):
    model = OnnxModel(write_model(tmp_path / "m.onnx"))
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[0, 0, 4, 4] = float("nan")
    assert model(images).isnan().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"slope_shape": (1,)},
        {"slope_shape": (20, 1, 1), "channels": 20},
        {"extra": [helper.make_node("DynamicQuantizeLinear", ["x"], ["quantised", "step", "zero"])]},
    ],
)
def test_graphs_that_would_not_gain_are_left_alone(tmp_path, changes):
    assert with_quick_prelu(write_model(tmp_path / "m.onnx", **changes)) is None
