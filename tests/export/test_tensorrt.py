"""TensorRT needs a GPU: a stand-in with the documented names takes the calls, onnxruntime runs what it was given."""

import sys
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dist_train.backbones import BackboneConfig, build_backbone
from dist_train.errors import UserError, WorkError
from dist_train.export.convention import Convention
from dist_train.export.tensorrt import build_engine, half_onnx, open_tensorrt

SIZE, DIM = 32, 16


class StandIn:
    """The part of TensorRT's Python API that building needs; the engine it gives is the network's ONNX."""

    __version__ = "11.0.0"
    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    def __init__(self, errors=(), builds=True):
        self.errors, self.builds, self.calls = errors, builds, {}

    def Builder(self, log):  # noqa: N802
        return SimpleNamespace(
            create_network=lambda flags: self.calls.update(flags=flags),
            create_builder_config=lambda: SimpleNamespace(
                set_memory_pool_limit=lambda pool, size: self.calls.update(pool=(pool, size)),
                add_optimization_profile=lambda profile: self.calls.update(profile=profile),
            ),
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda name, *shapes: self.calls.update(name=name, shapes=shapes)
            ),
            build_serialized_network=lambda network, config: self.calls["parsed"] if self.builds else None,
        )

    def OnnxParser(self, network, log):  # noqa: N802
        def parse(data):
            self.calls["parsed"] = data
            return not self.errors

        return SimpleNamespace(parse=parse, num_errors=len(self.errors), get_error=self.errors.__getitem__)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    net = build_backbone(BackboneConfig(name="tiny", embedding_dim=DIM), SIZE)
    net(torch.rand(8, 3, SIZE, SIZE) * 2 - 1)
    return net.eval()


@pytest.fixture(scope="module")
def model(backbone):
    return half_onnx(backbone, SIZE)


@pytest.fixture
def install(monkeypatch, model):
    def put(standin):
        monkeypatch.setattr("dist_train.export.tensorrt.open_tensorrt", lambda: standin)
        monkeypatch.setattr("dist_train.export.tensorrt.half_onnx", lambda *_: model)
        return standin

    return put


def test_the_network_handed_to_tensorrt_computes_in_float16_between_float32_ends(backbone, model):
    onnx.checker.check_model(model)
    weights = [each for each in model.graph.initializer if len(each.dims) > 1]
    assert {each.data_type for each in weights} == {onnx.TensorProto.FLOAT16}
    images = torch.rand(5, 3, SIZE, SIZE) * 2 - 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    assert found.dtype == "float32"
    with torch.no_grad():
        cosines = nn.functional.cosine_similarity(torch.from_numpy(found), backbone(images))
    assert cosines.min() > 0.999
    assert next(backbone.parameters()).dtype == torch.float32


def test_an_engine_is_built_for_a_range_of_batches_and_written_whole(backbone, install, tmp_path):
    trt = install(StandIn())
    build_engine(backbone, Convention(SIZE, DIM), tmp_path / "m.engine")
    assert trt.calls["flags"] == 2  # 1 << STRONGLY_TYPED
    assert trt.calls["name"] == "images"
    assert trt.calls["shapes"] == ((1, 3, SIZE, SIZE), (32, 3, SIZE, SIZE), (256, 3, SIZE, SIZE))
    assert (tmp_path / "m.engine").read_bytes() == trt.calls["parsed"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.engine"]


def test_what_tensorrt_refuses_is_passed_on(backbone, install, tmp_path):
    install(StandIn(errors=("In node 3 (Foo): UNSUPPORTED_NODE",)))
    with pytest.raises(WorkError, match="TensorRT cannot read the network: In node 3"):
        build_engine(backbone, Convention(SIZE, DIM), tmp_path / "m.engine")
    install(StandIn(builds=False))
    with pytest.raises(WorkError, match="TensorRT built no engine"):
        build_engine(backbone, Convention(SIZE, DIM), tmp_path / "m.engine")
    assert not list(tmp_path.iterdir())


def test_an_old_tensorrt_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(UserError, match=r"tensorrt is 8.6.1, expected 10 or newer"):
        open_tensorrt()
