"""`--int8 trained`: what was trained is what is deployed, and it loses less than rounding afterwards."""

import onnx
import pytest
import torch
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.data.manifest import Manifest
from dist_train.errors import UserError, WorkError
from dist_train.export.folded import folded_graph
from dist_train.export.onnx import export_onnx
from dist_train.export.pictures import stored_pictures
from dist_train.export.quantize import quantize_static
from dist_train.export.runtime import OnnxModel
from dist_train.export.train_int8 import LEAST_STEPS, check_pictures, train_int8
from tests.data.sets import encode, picture, write_tar
from tests.export.test_quantize import SIZE, operations, residual_net, spoilt_net
from tests.sets import write_set

STEPS = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "set"
    write_set(directory, classes=10, views=8, size=SIZE)
    return directory


@pytest.fixture(scope="module")
def network():
    return spoilt_net()


@pytest.fixture(scope="module")
def trained(network, shards):
    return train_int8(network, SIZE, shards, STEPS, quiet=True)


@pytest.fixture(scope="module")
def held_out(shards):
    return stored_pictures(shards, SIZE, 40, late=True)


def cosines(left, right):
    with torch.no_grad():
        return nn.functional.cosine_similarity(left, right)


def test_training_loses_less_than_rounding_afterwards(network, trained, shards, held_out, tmp_path):
    made = export_onnx(network, SIZE, tmp_path / "float.onnx")
    quantize_static(made.path, tmp_path / "static.onnx", made.convention, stored_pictures(shards, SIZE, 64))
    written = export_onnx(trained, SIZE, tmp_path / "trained.onnx")
    losses = [
        float(1 - cosines(OnnxModel(path)(held_out), network(held_out)).mean())
        for path in (tmp_path / "static.onnx", written.path)
    ]
    assert losses[1] < 0.2 * losses[0]


@pytest.mark.parametrize("normalize_inside", [False, True])
def test_onnxruntime_computes_in_integers_what_was_trained(trained, held_out, tmp_path, normalize_inside):
    made = export_onnx(trained, SIZE, tmp_path / "m.onnx", normalize_inside=normalize_inside)
    model = OnnxModel(made.path)
    with torch.no_grad():
        expected = trained(held_out)
    assert cosines(model(held_out), expected).min() > 0.999
    torch.testing.assert_close(model(held_out), expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    found = operations(made.path)
    assert (found.count("QLinearConv"), found.count("QGemm"), found.count("Conv")) == (3, 1, 0)  # and no BatchNorm
    assert model(held_out[:3]).shape == (3, 8)  # the batch axis stays free


def test_weights_take_seven_bits_and_a_scale_for_each_channel(trained, tmp_path):
    graph = onnx.load(export_onnx(trained, SIZE, tmp_path / "m.onnx").path).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4  # the normalisation before a convolution is one too
    for node in layers:
        whole, scale, *_ = (arrays[name] for name in makers[node.input[1]].input)
        assert whole.dtype == "int8"
        assert whole.min() >= -64
        assert whole.max() <= 63
        assert abs(whole.astype(int)).max() > 50
        assert scale.shape == (len(whole),)


@pytest.mark.parametrize("name", ["tiny", "mobilefacenet", "vit_nano"])
def test_a_graph_with_its_normalisations_folded_is_the_same_function_with_its_own_weights(name):
    torch.manual_seed(0)
    network = build_backbone(backbone_section({"name": name, "embedding_dim": 8}), 32)
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    network(pictures)  # statistics
    network.eval()
    graph = folded_graph(network, 32)
    with torch.no_grad():
        expected = network(pictures)
        torch.testing.assert_close(graph(pictures), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        for parameter in graph.parameters():
            parameter.zero_()
        assert torch.equal(network(pictures), expected)
    assert not [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and "norm" in str(node.target) and "layer" not in str(node.target)
    ]


def test_a_network_of_numbers_that_are_none_is_refused(network, shards):
    broken = residual_net()
    with torch.no_grad():
        broken.stem[0].weight[0] = float("nan")
    with pytest.raises(WorkError, match="embeddings are not finite; the network is damaged"):
        train_int8(broken, SIZE, shards, 1, quiet=True)


def test_too_few_pictures_are_refused_with_their_number(tmp_path):
    write_set(tmp_path / "few", classes=2, views=3, size=SIZE)
    with pytest.raises(UserError, match=r"few: 6 pictures to train int8 on, expected at least 32"):
        check_pictures(tmp_path / "few")


def test_pictures_without_labels_will_do(network, tmp_path):
    samples = [[(f"{number}.jpg", encode(picture(number, SIZE)))] for number in range(40)]
    Manifest(SIZE, 1, (write_tar(tmp_path / "bare-000000.tar", samples),)).save(tmp_path)
    assert stored_pictures(tmp_path, SIZE, 8).shape == (8, 3, SIZE, SIZE)
    check_pictures(tmp_path)
    assert train_int8(network, SIZE, tmp_path, LEAST_STEPS, quiet=True)(torch.zeros(1, 3, SIZE, SIZE)).shape[0] == 1


def test_a_normalisation_without_statistics_of_its_own_is_refused_by_name():
    net = residual_net()
    net.inside[0].running_mean = net.inside[0].running_var = None
    with pytest.raises(UserError, match=r"batch_norm\w* of the network normalises by its batch.*--int8 static"):
        folded_graph(net, SIZE)
