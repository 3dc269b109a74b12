"""The three networks of a cascade as ONNX files, for programs that have no torch.

All take `images` [n, 3, height, width], red first, as (x - 127.5) / 128, and give scores from 0 to 1:

    NAME-pnet.onnx    any even height and width    scores [n, h, w], boxes [n, h, w, 4]: 12x12 windows, every 2nd pixel
    NAME-rnet.onnx    24x24                        scores [n], boxes [n, 4]
    NAME-onet.onnx    48x48                        scores [n], boxes [n, 4], landmarks [n, 5, 2]

Boxes are offsets of the four sides in units of the window's, landmarks positions within it. The networks are chains of
few layers, so their graphs are written layer by layer: torch's exporter takes half a minute for them.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from data_prep.mtcnn.weights import Networks
from dist_train.export.onnx import save_onnx
from dist_train.export.prelu import spread_prelu

_OPSET = 18
# Layers in order, and the side of the windows that are pooled after each, 0 for none.
_CHAINS = {
    "pnet": (("conv1", "prelu1", 2), ("conv2", "prelu2", 0), ("conv3", "prelu3", 0)),
    "rnet": (("conv1", "prelu1", 3), ("conv2", "prelu2", 3), ("conv3", "prelu3", 0), ("dense4", "prelu4", 0)),
    "onet": (
        ("conv1", "prelu1", 3),
        ("conv2", "prelu2", 3),
        ("conv3", "prelu3", 2),
        ("conv4", "prelu4", 0),
        ("dense5", "prelu5", 0),
    ),
}
_SIDES: dict[str, tuple[int | str, int | str]] = {"pnet": ("height", "width"), "rnet": (24, 24), "onet": (48, 48)}
_OUTPUTS: dict[str, dict[str, list[int | str]]] = {
    "pnet": {"scores": ["batch", "rows", "columns"], "boxes": ["batch", "rows", "columns", 4]},
    "rnet": {"scores": ["batch"], "boxes": ["batch", 4]},
    "onet": {"scores": ["batch"], "boxes": ["batch", 4], "landmarks": ["batch", 5, 2]},
}


def export_networks(networks: Networks, weights: Path) -> list[Path]:
    """Write the three files beside a file of weights, under its name.

    Raises:
        WorkError: they cannot be written.
    """
    paths: list[Path] = []
    for (name, network), threshold in zip(networks.by_name().items(), networks.thresholds, strict=True):
        model = _Graph(name, network).model()
        spread_prelu(model)
        helper.set_model_props(model, {"kind": f"headcount.mtcnn.{name}", "threshold": f"{threshold:.6g}"})
        paths.append(weights.with_name(f"{weights.stem}-{name}.onnx"))
        save_onnx(model, paths[-1])
    return paths


class _Graph:
    """The graph of one network, as it grows."""

    def __init__(self, name: str, network: nn.Module) -> None:
        self._name = name
        self._state = {key: tensor.detach().cpu().float().numpy() for key, tensor in network.state_dict().items()}
        self._state["conv1.weight"] = self._state["conv1.weight"][:, :3]  # the fourth channel is none
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        value = "images"
        for layer, prelu, window in _CHAINS[self._name]:
            value = self._layer(layer, value)
            slope = self._state[f"{prelu}.weight"]
            shape = (-1,) if layer.startswith("dense") else (-1, 1, 1)
            value = self._add("PRelu", prelu, [value, self._constant(f"{prelu}.slope", slope.reshape(shape))])
            if window:
                value = self._add(
                    "MaxPool", f"{layer}.pool", [value], kernel_shape=[window] * 2, strides=[2, 2], ceil_mode=1
                )
        weight, bias = self._state["score.weight"], self._state["score.bias"]
        self._state["score.weight"], self._state["score.bias"] = weight[1:] - weight[:1], bias[1:] - bias[:1]
        score = self._add("Sigmoid", "probability", [self._layer("score", value)])
        self._add("Squeeze", "scores", [score, self._constant("one", np.array([1]))])
        if self._name == "pnet":
            self._add("Transpose", "boxes", [self._layer("box", value)], perm=[0, 2, 3, 1])
        else:
            self._layer("box", value, "boxes")
        if self._name == "onet":
            shape_of = self._constant("points", np.array([-1, 2, 5]))
            points = self._add("Reshape", "points.apart", [self._layer("landmarks", value, "points.flat"), shape_of])
            self._add("Transpose", "landmarks", [points], perm=[0, 2, 1])
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *_SIDES[self._name]])]
        outputs = [helper.make_tensor_value_info(*each) for each in self._outputs()]
        graph = helper.make_graph(self._nodes, self._name, inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="headcount")
        model.ir_version = 9  # of that operator set: older runtimes read it, too
        onnx.checker.check_model(model)
        return model

    def _outputs(self) -> list[tuple[str, int, list[int | str]]]:
        return [(name, cast(int, TensorProto.FLOAT), shape) for name, shape in _OUTPUTS[self._name].items()]

    def _layer(self, name: str, value: str, output: str = "") -> str:
        """A convolution, or a product where the network has one; P-Net's last layers are convolutions of one pixel."""
        weight, bias = self._state[f"{name}.weight"], self._constant(f"{name}.bias", self._state[f"{name}.bias"])
        output = output or f"{name}.out"
        if weight.ndim == 4 or self._name == "pnet":
            weight = weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight
            return self._add("Conv", output, [value, self._constant(f"{name}.weight", weight), bias])
        if name.startswith("dense"):
            value = self._add("Flatten", f"{name}.flat", [value])
        return self._add("Gemm", output, [value, self._constant(f"{name}.weight", weight), bias], transB=1)

    def _constant(self, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(self, kind: str, output: str, inputs: list[str], **attributes: Any) -> str:  # noqa: ANN401 - as onnx takes them
        self._nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **attributes))
        return output
