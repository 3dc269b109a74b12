"""What each layer costs in int8, layers that stay in float, fixed shapes and float16."""

import onnx
import pytest
import torch
from torch import nn

from dist_train.export.onnx import export_onnx, half_inside
from dist_train.export.quantize import quantize_static
from dist_train.export.runtime import OnnxModel
from dist_train.export.sensitivity import costs_table, rank_layers
from tests.export.test_quantize import SIZE, cosines, operations, pictures, spoilt_net

__all__ = ["pictures"]
BATCH = 5


@pytest.fixture(scope="module")
def spoilt():
    return spoilt_net()


@pytest.fixture(scope="module")
def exported(spoilt, tmp_path_factory):
    """For a fixed number of pictures."""
    return export_onnx(spoilt, SIZE, tmp_path_factory.mktemp("fixed") / "model.onnx", batch=BATCH)


def test_a_file_of_a_fixed_shape_states_it_and_gives_the_same_embeddings(exported, spoilt, pictures):
    model = onnx.load(exported.path)
    shapes = [[axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in model.graph.input]
    assert shapes == [[BATCH, 3, SIZE, SIZE]]
    assert OnnxModel(exported.path).metadata["batch"] == str(BATCH)
    with torch.no_grad():  # 12 pictures are two batches and a part of one
        torch.testing.assert_close(OnnxModel(exported.path)(pictures[:12]), spoilt(pictures[:12]), rtol=1e-3, atol=1e-3)


def test_the_dearest_layer_is_found_and_leaving_it_in_float_helps(exported, pictures, tmp_path):
    calibration = pictures[:48]
    costs = rank_layers(exported.path, exported.convention, calibration, BATCH, quiet=True)
    assert {each.operation for each in costs} == {"Conv", "Gemm", "Add"}
    assert [each.cost for each in costs] == sorted((each.cost for each in costs), reverse=True)
    assert costs[0].weights.startswith("inside.1.weight")
    again = [0.0, 0.0]
    for number, left in enumerate(([], [costs[0].node])):
        target = tmp_path / f"{number}.onnx"
        quantize_static(exported.path, target, exported.convention, calibration, left_float=left, batch=BATCH)
        again[number] = float(1 - cosines(target, exported.path, pictures).mean())
        assert sum(name == "QLinearConv" for name in operations(target)) == 2 - number
    assert again[1] < 0.5 * again[0]
    assert OnnxModel(target).metadata["float_layers"] == costs[0].node
    table = str(costs_table(costs, [costs[0].node]))
    assert table.splitlines()[3].startswith("inside.1.weight")
    assert table.count("float32") == 1


def test_a_float16_file_has_half_the_size_and_takes_float32(spoilt, exported, pictures, tmp_path):
    half = export_onnx(half_inside(spoilt), SIZE, tmp_path / "half.onnx")
    assert half.size_bytes < 0.6 * exported.size_bytes
    assert bool(
        (nn.functional.cosine_similarity(OnnxModel(half.path)(pictures), spoilt(pictures).detach()) > 0.999).all()
    )
    assert next(spoilt.parameters()).dtype == torch.float32, "the original is left as it is"
