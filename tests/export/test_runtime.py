"""ONNX files of others, made here node by node: each says which values it was given."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.pictures import to_tensor
from dist_train.evaluate.sameness import note_on_sameness
from dist_train.export.convention import RANGES, Stated
from dist_train.export.runtime import OnnxModel

REAL = Path(__file__).parents[3] / "shared" / "real"
SIZE = 8
COLOR = (10, 100, 250)


def write_model(
    path, batch="n", layout="NCHW", kind=TensorProto.FLOAT, outputs=("mean",), size=SIZE, metadata=None, declared=None
):
    """A model whose embedding is the mean of each channel as it comes in; `outputs` are forms of it."""
    picture = [3, size, size] if layout == "NCHW" else [size, size, 3]
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    rows = "n" if isinstance(batch, str) else batch
    nodes = [
        helper.make_node("Cast", ["x"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
        helper.make_node("Neg", ["mean"], ["negated"]),
        helper.make_node("Reshape", ["mean", "columns"], ["column"]),
        helper.make_node("Reshape", ["mean", "flat"], ["row"]),
        helper.make_node("Reshape", ["mean", "one"], ["single"]),
        helper.make_node("Identity", ["values"], ["map"]),
    ]
    shapes = {
        "mean": [rows, 3],
        "negated": [rows, 3],
        "column": [rows, 3, 1, 1],
        "row": [3],
        "single": [1, 3],
        "map": [rows, *picture],
    } | (declared or {})
    graph = helper.make_graph(
        [node for node in nodes if node.output[0] in ("values", "mean", *outputs)],
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, *picture])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [
            numpy_helper.from_array(np.array(axes), "axes"),
            numpy_helper.from_array(np.array([0, 3, 1, 1]), "columns"),
            numpy_helper.from_array(np.array([3]), "flat"),
            numpy_helper.from_array(np.array([1, 3]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


def pictures(count=1, size=SIZE):
    """Pictures of one colour each, a level brighter from one to the next."""
    return to_tensor([np.full((size, size, 3), COLOR, np.uint8) + np.uint8(i) for i in range(count)])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("name", RANGES)
def test_a_float_model_is_given_the_range_colours_and_layout_that_were_stated(tmp_path, layout, color, name):
    mean, std = RANGES[name]
    stated = Stated((mean,) * 3, (std,) * 3, color)
    model = OnnxModel(write_model(tmp_path / "m.onnx", layout=layout), stated=stated)
    expected = (np.array(COLOR if color == "rgb" else COLOR[::-1]) - mean) / std
    np.testing.assert_allclose(model(pictures())[0], expected, atol=1e-5)
    assert (model.convention.layout, model.convention.range_text()) == (layout, name)


def test_each_channel_has_its_own_mean_and_deviation_in_the_order_of_the_model(tmp_path):
    stated = Stated((1, 2, 3), (2, 4, 8), "bgr")
    model = OnnxModel(write_model(tmp_path / "m.onnx"), stated=stated)
    np.testing.assert_allclose(model(pictures())[0], [(250 - 1) / 2, (100 - 2) / 4, (10 - 3) / 8], rtol=1e-6)
    assert str(model.convention) == "float32 [B, 3, 8, 8], blue first, (value - 1,2,3) / 2,4,8"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_uint8_model_is_given_the_pictures_as_decoded(tmp_path, layout, color):
    path = write_model(tmp_path / "m.onnx", layout=layout, kind=TensorProto.UINT8)
    found = OnnxModel(path, stated=Stated(color=color))(pictures())
    assert found.tolist() == [list(COLOR if color == "rgb" else COLOR[::-1])]
    with pytest.raises(UserError, match=r"takes uint8, so values 0\.\.255 as decoded"):
        OnnxModel(path, stated=Stated(mean=(127.5,) * 3))


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("output", ["mean", "column"])
def test_a_model_of_a_fixed_batch_runs_in_such_batches(tmp_path, batch, count, output):
    free = OnnxModel(write_model(tmp_path / "free.onnx", outputs=(output,)))
    fixed = OnnxModel(write_model(tmp_path / "fixed.onnx", batch=batch, outputs=(output,)))
    found = fixed(pictures(count))
    assert found.shape == (count, 3)
    torch.testing.assert_close(found, free(pictures(count)))
    assert fixed(pictures()[:0]).shape == (0, 3)


def test_an_embedding_without_an_axis_of_pictures_is_taken_from_a_model_of_one_picture(tmp_path):
    model = OnnxModel(write_model(tmp_path / "m.onnx", batch=1, outputs=("row",)), stated=raw())
    np.testing.assert_allclose(model(pictures(2)), [COLOR, np.array(COLOR) + 1], rtol=1e-6)


def raw():
    return Stated((0, 0, 0), (1, 1, 1))


def test_the_only_output_that_can_be_an_embedding_is_taken_and_others_by_name(tmp_path):
    path = write_model(tmp_path / "m.onnx", outputs=("map", "negated"))
    assert OnnxModel(path).output == "negated"
    path = write_model(tmp_path / "two.onnx", outputs=("mean", "negated"))
    with pytest.raises(UserError, match=r"several outputs; .* --output NAME: mean \['n', 3\], negated \['n', 3\]"):
        OnnxModel(path)
    model = OnnxModel(path, stated=Stated(output="negated"))
    assert model.told == {"output": "negated"}
    assert (model(pictures()) == -OnnxModel(path, stated=Stated(output="mean"))(pictures())).all()
    with pytest.raises(UserError, match=r"output map \['n', 3, 8, 8\] is not embeddings"):
        OnnxModel(tmp_path / "m.onnx", stated=Stated(output="map"))
    with pytest.raises(UserError, match=r"no output 'fc1'; its outputs are mean .*, negated"):
        OnnxModel(path, stated=Stated(output="fc1"))


def test_sizes_that_the_file_leaves_open_are_those_stated_or_112(tmp_path):
    path = write_model(tmp_path / "m.onnx", size="side", declared={"mean": ["n", "d"]})
    assert (OnnxModel(path).convention.image_size, OnnxModel(path).convention.embedding_dim) == (112, 3)
    model = OnnxModel(path, stated=Stated(image_size=SIZE))
    assert model(pictures()).shape == (1, 3)
    fixed = write_model(tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match="takes pictures of 8 px, --input-size is 112"):
        OnnxModel(fixed, stated=Stated(image_size=112))


def test_what_was_said_is_a_part_of_the_model_where_it_makes_a_difference(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    assert OnnxModel(path).told == {}
    assert OnnxModel(path, stated=Stated((127.5,) * 3, (127.5,) * 3, "rgb", SIZE, "mean")).told == {}
    assert OnnxModel(path, stated=raw()).told == {"input": "0..255, rgb"}


def test_metadata_that_the_graph_contradicts_is_refused(tmp_path):
    said = {"input_type": "float32", "input_layout": "NHWC", "input_color": "RGB", "input_mean": "0", "input_std": "1"}
    for wrong in ({}, {"input_layout": "NCHW", "input_std": "0"}, {"input_layout": "NCHW", "input_mean": "much"}):
        path = write_model(tmp_path / "m.onnx", metadata=said | wrong)
        with pytest.raises(UserError, match=r"its metadata says .* the file was changed"):
            OnnxModel(path)
    model = OnnxModel(write_model(tmp_path / "m.onnx", metadata=said | {"input_layout": "NCHW"}))
    assert not model.foreign
    np.testing.assert_allclose(model(pictures())[0], COLOR, rtol=1e-6)


def test_a_failure_of_onnxruntime_is_told_whole_on_one_line(tmp_path):
    # The graph promises any number of pictures and is made for one.
    model = OnnxModel(write_model(tmp_path / "m.onnx", outputs=("single",)))
    assert model(pictures()).shape == (1, 3)
    with pytest.raises(WorkError, match=r"onnxruntime: .*Reshape.*shape.*--batch-size 1") as found:
        model(pictures(2))
    assert "\n" not in str(found.value)
    assert "..." not in str(found.value)


@pytest.mark.skipif(not REAL.is_dir(), reason="a pretrained model and faces, which are not in the repository")
@pytest.mark.parametrize(("name", "works"), [("0..255", True), ("-1..1", False), ("0..1", False)])
def test_a_pretrained_model_in_a_wrong_range_is_told_from_one_that_works(name, works):
    faces = read_bin(REAL / "small_lfw.bin")
    decoded = [cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for each in faces.images]
    mean, std = RANGES[name]
    model = OnnxModel(REAL / "mobilefacenet_y1.onnx", stated=Stated((mean,) * 3, (std,) * 3))
    unit = torch.nn.functional.normalize(model(to_tensor(decoded)), dim=1)
    cosines = (unit @ unit.T).numpy()
    different = cosines[np.arange(20)[:, None] // 2 != np.arange(20) // 2]
    assert (note_on_sameness(different) == []) == works
    assert (np.median(cosines[np.arange(0, 20, 2), np.arange(1, 20, 2)]) > np.median(different) + 0.3) == works
