import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dist_train.errors import UserError, WorkError
from dist_train.export.onnx import compare_onnx, export_onnx
from dist_train.export.runtime import OnnxModel

SIZE, DIM = 24, 6


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * (SIZE // 4) ** 2, DIM),
        nn.BatchNorm1d(DIM),
    )
    net(torch.randn(16, 3, SIZE, SIZE))  # running statistics away from their start
    return net.train()


@pytest.fixture(scope="module")
def pictures():
    levels = torch.randint(0, 256, (9, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    return levels.float() / 127.5 - 1


@pytest.fixture(scope="module", params=[False, True], ids=["float", "uint8"])
def exported(request, tmp_path_factory, backbone):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return export_onnx(backbone, SIZE, path, normalize_inside=request.param)


def test_onnxruntime_gives_the_embeddings_of_pytorch_in_evaluation_mode(exported, backbone, pictures):
    difference, cosine = compare_onnx(exported.path, backbone, pictures, batch_size=4)
    assert difference < 1e-4
    assert cosine > 0.99999
    assert backbone.training


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_the_batch_axis_is_free(exported, pictures, batch):
    assert OnnxModel(exported.path)(pictures[:batch]).shape == (batch, DIM)


def test_the_file_is_one_valid_model_that_states_its_convention(exported):
    model = onnx.load(exported.path)
    onnx.checker.check_model(model)
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]
    assert exported.opset == 18 == model.opset_import[0].version
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    uint8 = exported.convention.input_type == "uint8"
    assert metadata["input_type"] == exported.convention.input_type
    assert metadata["input_shape"] == (f"batch,{SIZE},{SIZE},3" if uint8 else f"batch,3,{SIZE},{SIZE}")
    assert metadata["embedding_dim"] == str(DIM)
    assert metadata["input_color"] == "RGB"
    assert OnnxModel(exported.path).convention == exported.convention


def test_a_uint8_model_takes_pictures_as_decoded(backbone, pictures, tmp_path):
    path = export_onnx(backbone, SIZE, tmp_path / "m.onnx", normalize_inside=True).path
    decoded = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"images": decoded})
    with torch.no_grad():
        np.testing.assert_allclose(found, backbone.eval()(pictures), atol=1e-4)
    backbone.train()


def test_pictures_of_another_size_are_refused_with_both_sizes(exported):
    with pytest.raises(UserError, match=rf"takes {SIZE} px pictures .* got \[2, 3, 32, 32\]"):
        OnnxModel(exported.path)(torch.zeros(2, 3, 32, 32))


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="onnxruntime cannot load it"):
        OnnxModel(tmp_path / "text.onnx")


def make_model(path, input_shape, output_shape, kind=onnx.TensorProto.FLOAT):
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", kind, input_shape)],
        [onnx.helper.make_tensor_value_info("y", kind, output_shape)],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize(
    ("input_shape", "message"),
    [
        (["b", 8], r"takes tensor\(float\) \['b', 8\], expected float32 or uint8 \[batch, 3, S, S\]"),
        (["b", 3, 8, 6], r"takes tensor\(float\) \['b', 3, 8, 6\], expected .* of square pictures"),
        (["b", 1, 8, 8], "square pictures of three colours"),
        (["b", 3, 8, 8], r"no output is embeddings \[batch, D\]; its outputs are y \['b', 3, 8, 8\]"),
    ],
)
def test_an_onnx_file_that_embeds_no_pictures_is_refused(tmp_path, input_shape, message):
    make_model(tmp_path / "m.onnx", input_shape, input_shape)
    with pytest.raises(UserError, match=message):
        OnnxModel(tmp_path / "m.onnx")


def test_damaged_weights_are_found_by_the_comparison(tmp_path, pictures):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM))
    nn.init.constant_(net[1].bias, torch.nan)
    path = export_onnx(net, SIZE, tmp_path / "m.onnx").path
    with pytest.raises(WorkError, match="not finite"):
        compare_onnx(path, net, pictures)
    with pytest.raises(UserError, match="at least one picture"):
        compare_onnx(path, net, pictures[:0])


def test_an_unwritable_place_is_named_and_nothing_is_left(tmp_path, backbone):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot be written"):
        export_onnx(backbone, SIZE, tmp_path / "file" / "m.onnx")
    assert backbone.training


class Stubborn(nn.Module):
    def forward(self, images):
        if torch.compiler.is_compiling():
            raise ValueError("this layer has no form outside of training\nand says so at length")
        return images.flatten(1)[:, :4]


def test_a_failed_export_says_its_cause_and_not_only_the_exporters_stage(tmp_path):
    with pytest.raises(WorkError) as caught:
        export_onnx(Stubborn(), 16, tmp_path / "a.onnx")
    assert str(caught.value).endswith("ValueError: this layer has no form outside of training")
    assert not (tmp_path / "a.onnx").exists()
