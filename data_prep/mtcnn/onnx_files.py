"""The three networks of a cascade as ONNX files, for programs that have no torch.

All take pictures [n, 3, height, width], red first, as (x - 127.5) / 128, and give scores from 0 to 1:

    NAME-pnet.onnx    any even height and width    scores [n, h, w], boxes [n, h, w, 4]: a window of 12x12 per 2x2 pixels
    NAME-rnet.onnx    24x24                        scores [n], boxes [n, 4]
    NAME-onet.onnx    48x48                        scores [n], boxes [n, 4], landmarks [n, 5, 2]

Boxes are offsets of the four sides in units of the window's, landmarks positions within it.
"""

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data_prep.mtcnn.networks import PNet
from data_prep.mtcnn.pyramid import CELL, STRIDE
from data_prep.mtcnn.weights import Networks
from dist_train.errors import WorkError

_SIDES = {"rnet": 24, "onet": 48}
_OPSET = 18


class _Deployed(nn.Module):
    """A network without the fourth channel of its input, whose scores are probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval()
        first = cast(nn.Conv2d, self.network.conv1)
        first.weight = nn.Parameter(first.weight[:, :3].clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores, boxes, and O-Net's landmarks."""
        logits, second, *further = self.network(images)
        if isinstance(self.network, PNet):
            return torch.sigmoid(logits), self.network.box(second)
        return torch.sigmoid(logits[:, 1] - logits[:, 0]), second, *further


def export_networks(networks: Networks, weights: Path) -> list[Path]:
    """Write the three files beside a file of weights, under its name.

    Raises:
        WorkError: they cannot be written.
    """
    import onnx

    from dist_train.export.onnx import cause_of, save_onnx
    from dist_train.export.prelu import spread_prelu
    from dist_train.export.trace import quiet_exporter

    batch = torch.export.Dim("batch", min=1)
    paths = []
    for name, network in networks.by_name().items():
        path = weights.with_name(f"{weights.stem}-{name}.onnx")
        if name == "pnet":
            halves = (torch.export.Dim(axis, min=CELL // STRIDE, max=1 << 13) for axis in ("half_height", "half_width"))
            example = torch.zeros(2, 3, 4 * CELL, 5 * CELL)
            shape = {0: batch, **{axis: STRIDE * half for axis, half in zip((2, 3), halves, strict=True)}}
        else:
            example, shape = torch.zeros(2, 3, _SIDES[name], _SIDES[name]), {0: batch}
        outputs = ["scores", "boxes", *(["landmarks"] if name == "onet" else [])]
        try:
            with torch.no_grad(), quiet_exporter():
                program = torch.onnx.export(
                    _Deployed(network),
                    (example,),
                    dynamo=True,
                    verbose=False,
                    input_names=["images"],
                    output_names=outputs,
                    dynamic_shapes=(shape,),
                    opset_version=_OPSET,
                    external_data=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise WorkError(f"export to {path}: {cause_of(error)}") from error
        model = cast(torch.onnx.ONNXProgram, program).model_proto
        spread_prelu(model)
        onnx.helper.set_model_props(
            model, {"kind": f"headcount.mtcnn.{name}", "threshold": f"{networks.thresholds[len(paths)]:.6g}"}
        )
        save_onnx(model, path)
        paths.append(path)
    return paths
