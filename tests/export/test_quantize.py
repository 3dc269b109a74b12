import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dist_train.errors import UserError, WorkError
from dist_train.export.onnx import export_onnx
from dist_train.export.quantize import quantize_dynamic, quantize_static
from dist_train.export.runtime import OnnxModel

SIZE, DIM = 16, 8


def residual_net():
    """The operations of our backbones: convolutions, BatchNorms on both sides, PReLU, a shortcut, a last layer."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
            self.inside = nn.Sequential(
                nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)
            )
            self.embed = nn.Sequential(nn.Flatten(), nn.Linear(16 * SIZE * SIZE, DIM), nn.BatchNorm1d(DIM))

        def forward(self, x):
            x = self.stem(x)
            return self.embed(x + self.inside(x))

    net = Residual()
    net(torch.randn(32, 3, SIZE, SIZE))
    return net.eval()


def spoilt_net():
    """The same with a channel of the inner convolution's weights that dwarfs the others: hard to round."""
    net = residual_net()
    with torch.no_grad():
        net.inside[1].weight[:, 3] *= 300
        net.inside[0].weight[3] /= 300
        net.inside[0].bias[3] /= 300
    return net


@pytest.fixture(scope="module")
def pictures():
    smooth = nn.functional.interpolate(
        torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(1)), SIZE, mode="bilinear"
    )
    return (smooth * 255).round() / 127.5 - 1


@pytest.fixture(scope="module", params=[False, True], ids=["float", "uint8"])
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return export_onnx(residual_net(), SIZE, path, normalize_inside=request.param, origin={"run": "r", "step": "7"})


def operations(path):
    """What onnxruntime really computes, after its own fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def cosines(left, right, pictures):
    return nn.functional.cosine_similarity(OnnxModel(left)(pictures), OnnxModel(right)(pictures))


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_static_form_computes_in_integers_and_keeps_the_embeddings(exported, pictures, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_static(exported.path, target, exported.convention, pictures[:48])
    assert cosines(exported.path, target, pictures[48:]).min() > 0.99
    found = operations(target)
    assert found.count("QLinearConv") == 2
    assert found.count("QGemm") == 1
    assert "Conv" not in found
    assert OnnxModel(target)(pictures[:3]).shape == (3, DIM)  # the batch axis stays free
    assert target.stat().st_size < 0.5 * exported.path.stat().st_size


def test_weights_have_a_scale_for_each_channel(exported, pictures, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_static(exported.path, target, exported.convention, pictures)
    graph = onnx.load(target).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weights = makers[node.input[1]]
            assert weights.op_type == "DequantizeLinear"
            assert arrays[weights.input[0]].dtype == "int8"
            assert arrays[weights.input[1]].shape == ({"Conv": 16, "Gemm": DIM}[node.op_type],)


def test_the_int8_file_states_the_convention_and_how_it_was_made(exported, pictures, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_static(exported.path, target, exported.convention, pictures)
    stated = {"quantization": "int8 static", "calibration_pictures": "64"}
    assert metadata(target) == metadata(exported.path) | stated
    assert OnnxModel(target).convention == exported.convention
    assert metadata(target)["step"] == "7"


def test_the_newest_operator_set_is_fused_to_integers_too(pictures, tmp_path):
    made = export_onnx(residual_net(), SIZE, tmp_path / "m.onnx", opset=23)
    quantize_static(made.path, tmp_path / "int8.onnx", made.convention, pictures)
    assert "Conv" not in operations(tmp_path / "int8.onnx")


def test_the_dynamic_form_needs_no_pictures(exported, pictures, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_dynamic(exported.path, target)
    assert cosines(exported.path, target, pictures).min() > 0.99
    assert metadata(target)["quantization"] == "int8 dynamic"
    assert target.stat().st_size < 0.5 * exported.path.stat().st_size


def test_too_few_pictures_to_calibrate_are_refused_with_the_number(exported, pictures, tmp_path):
    with pytest.raises(UserError, match=r"31 pictures to calibrate int8 with, expected at least 32"):
        quantize_static(exported.path, tmp_path / "int8.onnx", exported.convention, pictures[:31])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [11, 27])
def test_an_operator_set_that_int8_does_not_go_with_is_refused(exported, pictures, tmp_path, opset):
    model = onnx.load(exported.path)
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=rf"opset {opset}, expected 13 to 23; export it with --opset 18"):
        quantize_static(tmp_path / "m.onnx", tmp_path / "int8.onnx", exported.convention, pictures)
    with pytest.raises(UserError, match=f"opset {opset}"):
        quantize_dynamic(tmp_path / "m.onnx", tmp_path / "int8.onnx")


def test_an_unwritable_place_and_a_failing_quantiser_are_named(exported, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot be written"):
        quantize_dynamic(exported.path, tmp_path / "file" / "m.onnx")
    with pytest.raises(WorkError, match=r"int8 of .*model.onnx: "):
        quantize_static(exported.path, tmp_path / "m.onnx", exported.convention, pictures[:, :, :8, :8])
