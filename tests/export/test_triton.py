"""The repository that `headcount export --triton` writes: its configurations, its python model, its network."""

import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dist_train.errors import UserError
from dist_train.export.onnx import export_onnx
from dist_train.export.quantize import quantize_dynamic
from dist_train.export.runtime import OnnxModel
from dist_train.export.triton_repository import write_repository
from launch.cli import run
from tests.export.triton_server import PythonModel, read_config
from tests.sets import picture

SIZE, DIM = 32, 6


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * (SIZE // 2) ** 2, DIM)
    ).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["float", "uint8"])
def made(request, tmp_path_factory, backbone):
    """An exported model and its repository."""
    root = tmp_path_factory.mktemp("triton")
    export_onnx(backbone, SIZE, root / "m.onnx", normalize_inside=request.param, origin={"run": "small"})
    write_repository(root / "m.onnx", root / "repository")
    return root


@pytest.fixture(scope="module")
def encoded():
    kinds = (".png", ".jpg", ".webp")
    return [cv2.imencode(kinds[number % 3], picture(number, 1, SIZE))[1].tobytes() for number in range(7)]


def embed(place, images):
    session = onnxruntime.InferenceSession(place / "repository" / "embed" / "1" / "model.onnx")
    (rows,) = session.run(["embeddings"], {"images": images})
    return rows


def cosines(left, right):
    left, right = np.float64(left), np.float64(right)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_decode_and_embed_give_what_headcount_embed_gives_at_unit_length(made, encoded, monkeypatch):
    photos = made / "photos"
    photos.mkdir()
    for number, data in enumerate(encoded):
        (photos / f"{number}.{('png', 'jpg', 'webp')[number % 3]}").write_bytes(data)
    words = ["embed", made / "m.onnx", photos, made / "e.parquet"]
    monkeypatch.setattr(sys, "argv", ["headcount", *map(str, words)])
    assert run() == 0
    table = pq.read_table(made / "e.parquet")
    assert [path[0] for path in table["path"].to_pylist()] == list("0123456")
    wanted = np.array(table["embedding"].to_pylist())
    (images,) = PythonModel(made / "repository" / "decode", monkeypatch).ask(encoded)
    rows = embed(made, images)
    assert cosines(rows, wanted).min() >= 1 - 1e-6
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert cosines(np.roll(rows, 1, axis=0), wanted).max() < 0.9999, "the pictures are told apart"


def test_a_bad_picture_fails_its_own_request_and_no_other(made, encoded, monkeypatch):
    decode = PythonModel(made / "repository" / "decode", monkeypatch)
    png, jpg = encoded[:2]
    large = cv2.imencode(".png", np.zeros((SIZE, SIZE + 1, 3), np.uint8))[1].tobytes()
    bomb = png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:]
    claims = png[:33] + b"\xf3" + png[34:]  # 4 GB, which OpenCV would set aside
    broken = png[:60] + bytes(40) + png[100:]
    bad = {
        b"": "0 bytes that start with nothing",
        b"no picture": "expected JPEG, PNG or WebP",
        large: f"{SIZE + 1}x{SIZE} pixels, expected an aligned face of {SIZE}x{SIZE}",
        bomb: "60000x60000 pixels",
        jpg[:-20]: "it is cut off",
        png[:-20]: "it is cut off",
        claims: "with a chunk that claims 4,076,",
        broken: "cannot be decoded",
        png + bytes(1 << 20): "bytes, at most 71680 are taken",
    }
    alone = decode.ask([png])[0]
    answers = decode.ask([png], *([jpg, each] for each in bad), [png])
    assert np.array_equal(answers[0], alone)
    assert np.array_equal(answers[-1], alone)
    assert decode.ask([], [png])[0] == "no picture was sent"
    for answer, message in zip(answers[1:-1], bad.values(), strict=True):
        assert answer.startswith("picture 2 of 2: ")
        assert message in answer


def test_the_configurations_name_what_the_network_has(made):
    repository = made / "repository"
    assert sorted(path.name for path in repository.iterdir()) == ["decode", "embed", "headcount"]
    ensemble, decode, network = (read_config(repository / n / "config.pbtxt") for n in ("headcount", "decode", "embed"))
    session = onnxruntime.InferenceSession(repository / "embed" / "1" / "model.onnx")
    (entry,), (out,) = session.get_inputs(), session.get_outputs()
    assert [(each.name, list(each.dims)) for each in network.input] == [(entry.name, entry.shape[1:])]
    assert [(each.name, list(each.dims)) for each in network.output] == [(out.name, out.shape[1:])]
    assert {"tensor(float)": 11, "tensor(uint8)": 2}[entry.type] == network.input[0].data_type
    assert not isinstance(entry.shape[0], int)
    assert not isinstance(out.shape[0], int)
    assert network.platform == "onnxruntime_onnx"
    assert max(network.dynamic_batching.preferred_batch_size) <= network.max_batch_size
    assert network.dynamic_batching.max_queue_delay_microseconds > 0
    assert str(decode.output[0]) == str(network.input[0])
    assert (decode.backend, ensemble.platform) == ("python", "ensemble")
    assert ensemble.max_batch_size <= min(decode.max_batch_size, network.max_batch_size)
    # Every tensor that a step takes is the ensemble's input, or was given by a step before.
    known = {each.name: each for each in ensemble.input}
    for step, config in zip(ensemble.ensemble_scheduling.step, (decode, network), strict=True):
        assert step.model_name == config.name
        takes, gives = ({t.name: t for t in side} for side in (config.input, config.output))
        assert {pair.key for pair in step.input_map} == set(takes)
        assert all(list(known[pair.value].dims) == list(takes[pair.key].dims) for pair in step.input_map)
        known |= {pair.value: gives[pair.key] for pair in step.output_map}
    assert [list(known[each.name].dims) for each in ensemble.output] == [[DIM]]


def test_the_network_in_it_is_the_mean_direction_of_a_picture_and_its_mirror_image(made, backbone):
    levels = torch.randint(0, 256, (5, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    images = levels.float() / 127.5 - 1
    with torch.no_grad():
        wanted = nn.functional.normalize(backbone(images).double() + backbone(images.flip(3)).double(), dim=1)
    taken = OnnxModel(made / "m.onnx").convention.as_taken(images)
    for count in (1, 5):
        rows = embed(made, np.ascontiguousarray(taken[:count].numpy()))
        np.testing.assert_allclose(rows, wanted[:count].numpy(), atol=1e-5)


def test_its_file_states_its_origin_and_other_output(made):
    before, after = (OnnxModel(made / name).metadata for name in ("m.onnx", "repository/embed/1/model.onnx"))
    assert (before["run"], after["run"]) == ("small", "small")
    assert before["output"] != after["output"]
    onnx.checker.check_model(onnx.load(made / "repository" / "embed" / "1" / "model.onnx"), full_check=True)


def test_an_int8_file_makes_a_repository_too(made, tmp_path, encoded, monkeypatch):
    quantize_dynamic(made / "m.onnx", tmp_path / "q.onnx")
    write_repository(tmp_path / "q.onnx", tmp_path / "repository")
    images = PythonModel(tmp_path / "repository" / "decode", monkeypatch).ask(encoded)[0]
    assert cosines(embed(tmp_path, images), embed(made, images)).min() > 0.95


def test_what_cannot_be_served_is_refused_and_nothing_written(tmp_path, backbone):
    export_onnx(backbone, SIZE, tmp_path / "three.onnx", batch=3)
    with pytest.raises(UserError, match="takes 3 pictures and no other number"):
        write_repository(tmp_path / "three.onnx", tmp_path / "new")
    export_onnx(backbone, SIZE, tmp_path / "m.onnx")
    foreign = onnx.load(tmp_path / "m.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="states no convention of its pictures"):
        write_repository(tmp_path / "foreign.onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("kept")
    with pytest.raises(UserError, match="is not empty"):
        write_repository(tmp_path / "m.onnx", tmp_path / "used")
    with pytest.raises(UserError, match="is a file"):
        write_repository(tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine"]
