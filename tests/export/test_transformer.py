"""A vision transformer as ONNX and as int8."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dist_train.backbones.vit import VisionTransformer
from dist_train.export.onnx import compare_onnx, export_onnx
from dist_train.export.quantize import quantize_dynamic, quantize_static
from dist_train.export.runtime import OnnxModel

BLOCKS = 2


@pytest.fixture(scope="module")
def pictures():
    coarse = torch.rand(72, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return (nn.functional.interpolate(coarse, 32, mode="bilinear") * 255).round() / 127.5 - 1


@pytest.fixture(scope="module")
def network(pictures):
    """Drops in training, and statistics away from their start."""
    torch.manual_seed(0)
    made = VisionTransformer(8, 32, BLOCKS, 2, 32, embedding_dim=16, dropout=0.0, drop_path=0.1, patch_drop=0.2).train()
    made.draw(0, 0, torch.arange(len(pictures)))
    made(pictures)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network):
    return export_onnx(network, 32, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_onnxruntime_gives_the_embeddings_of_pytorch_for_any_batch(exported, network, pictures):
    _, cosine = compare_onnx(exported.path, network, pictures, batch_size=5)
    assert cosine >= 1 - 1e-6
    assert network.training


def test_the_static_form_has_its_products_in_integers_and_its_sums_in_floats(exported, pictures, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_static(exported.path, target, exported.convention, pictures[:48])
    assert closeness(exported.path, target, pictures[48:]) > 0.99
    assert target.stat().st_size < 0.35 * exported.path.stat().st_size
    found = operations(target)
    assert found.count("QLinearMatMul") + found.count("QGemm") >= 4 * BLOCKS + 2
    assert not {"MatMul", "Gemm", "Conv", "QLinearAdd"} & set(found)


def test_the_dynamic_form_keeps_the_embeddings(exported, pictures, tmp_path):
    quantize_dynamic(exported.path, tmp_path / "int8.onnx")
    assert closeness(exported.path, tmp_path / "int8.onnx", pictures) > 0.99


def closeness(left, right, pictures):
    return float(nn.functional.cosine_similarity(OnnxModel(left)(pictures), OnnxModel(right)(pictures)).min())


def operations(path):
    """What onnxruntime really computes, after its own fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
