"""Detectors in ONNX files: their decoding against plain formulas, their places in the photo, and what is refused."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_prep.detectors import graph as graphs
from data_prep.detectors.file import DetectorFile, read_detector_file
from data_prep.detectors.letterbox import draw, fit
from data_prep.detectors.onnx_detector import OnnxDetector
from data_prep.detectors.open import open_detector
from data_prep.detectors.retinaface import RetinaFace
from data_prep.detectors.scrfd import Scrfd
from data_prep.detectors.yunet import YuNet
from data_prep.mtcnn.onnx_files import export_networks
from data_prep.mtcnn.weights import open_networks
from dist_train.errors import UserError

SCRFD = Path(__file__).parents[3] / "shared" / "real" / "scrfd_2.5g_bnkps.onnx"
HEIGHT, WIDTH = 64, 96  # of the graphs' input
GRIDS = {stride: (HEIGHT // stride, WIDTH // stride) for stride in (8, 16, 32)}
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def save_graph(path, outputs, shape=(1, 3, HEIGHT, WIDTH), change=None):
    """A network that gives the same outputs for every picture."""
    constants = [numpy_helper.from_array(np.float32(value), f"{name}_") for name, value in outputs.items()]
    nodes = [helper.make_node("Identity", [f"{name}_"], [name]) for name in outputs]
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    entry = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "faces", [entry], told, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if change is not None:
        change(model)
    path.write_bytes(model.SerializeToString())
    return path


def scrfd_outputs(rng, points=True):
    """Random outputs, in the order of an export: all scores, all boxes, all points."""
    wide = {"score": 1, "bbox": 4, "kps": 10} if points else {"score": 1, "bbox": 4}
    rows = {stride: 2 * high * across for stride, (high, across) in GRIDS.items()}
    return {
        f"{kind}_{stride}": rng.random((rows[stride], width)) * (1 if width == 1 else 3)
        for kind, width in wide.items()
        for stride in GRIDS
    }


def plain_scrfd(outputs):
    for stride, (high, across) in GRIDS.items():
        row = 0
        for y in range(high):
            for x in range(across):
                for _ in range(2):
                    score = outputs[f"score_{stride}"][row, 0]
                    left, top, right, bottom = (float(d) * stride for d in outputs[f"bbox_{stride}"][row])
                    points = [
                        (x * stride + stride * float(dx), y * stride + stride * float(dy))
                        for dx, dy in outputs[f"kps_{stride}"][row].reshape(5, 2)
                    ]
                    yield score, (x * stride - left, y * stride - top, x * stride + right, y * stride + bottom), points
                    row += 1


def retinaface_outputs(rng):
    rows = sum(2 * high * across for high, across in GRIDS.values())
    return {
        "boxes": rng.normal(size=(1, rows, 4)),
        "confidences": (face := rng.random((1, rows, 1))) * [-1, 1] + [1, 0],
        "points": rng.normal(size=(1, rows, 10)) + 0 * face,
    }


def plain_retinaface(outputs):
    row = 0
    for (stride, (high, across)), sides in zip(GRIDS.items(), ((16, 32), (64, 128), (256, 512)), strict=True):
        for y in range(high):
            for x in range(across):
                for side in sides:
                    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                    dx, dy, dw, dh = map(float, outputs["boxes"][0, row])
                    mx, my = cx + 0.1 * dx * side, cy + 0.1 * dy * side
                    w, h = side * np.exp(0.2 * dw), side * np.exp(0.2 * dh)
                    points = [
                        (cx + 0.1 * float(px) * side, cy + 0.1 * float(py) * side)
                        for px, py in outputs["points"][0, row].reshape(5, 2)
                    ]
                    box = mx - w / 2, my - h / 2, mx + w / 2, my + h / 2
                    yield outputs["confidences"][0, row, 1], box, points
                    row += 1


def yunet_outputs(rng):
    made = {}
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride, (high, across) in GRIDS.items():
            made[f"{kind}_{stride}"] = rng.random((1, high * across, width))
    return made


def plain_yunet(outputs):
    for stride, (high, across) in GRIDS.items():
        row = 0
        for y in range(high):
            for x in range(across):
                face, thing = (float(outputs[f"{kind}_{stride}"][0, row, 0]) for kind in ("cls", "obj"))
                dx, dy, dw, dh = map(float, outputs[f"bbox_{stride}"][0, row])
                mx, my, w, h = (x + dx) * stride, (y + dy) * stride, np.exp(dw) * stride, np.exp(dh) * stride
                points = [
                    ((x + float(px)) * stride, (y + float(py)) * stride)
                    for px, py in outputs[f"kps_{stride}"][0, row].reshape(5, 2)
                ]
                yield np.sqrt(face * thing), (mx - w / 2, my - h / 2, mx + w / 2, my + h / 2), points
                row += 1


KINDS = {
    "scrfd": (Scrfd, scrfd_outputs, plain_scrfd),
    "retinaface": (RetinaFace, retinaface_outputs, plain_retinaface),
    "yunet": (YuNet, yunet_outputs, plain_yunet),
}


def rows(value):
    return value[0] if value.ndim == 3 else value


@pytest.mark.parametrize("name", KINDS)
def test_faces_are_decoded_as_the_plain_formula_says(name):
    kind, make, plain = KINDS[name]
    outputs = {key: np.float32(value) for key, value in make(np.random.default_rng(1)).items()}
    head = kind.of(list(outputs), [rows(value).shape for value in outputs.values()], HEIGHT, WIDTH)
    found = head.decode([rows(value) for value in outputs.values()], HEIGHT, WIDTH, 0.3)
    expected = [face for face in plain(outputs) if face[0] >= 0.3]
    assert 20 < len(expected) == len(found.scores)
    for got, number in zip((found.scores, found.boxes, found.points), range(3), strict=True):
        assert np.abs(got - np.array([face[number] for face in expected])).max() < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_known_by_its_outputs_and_gives_its_surest_face(tmp_path, name):
    _, make, plain = KINDS[name]
    outputs = {key: np.float32(value) for key, value in make(np.random.default_rng(2)).items()}
    detector = open_detector(save_graph(tmp_path / "net.onnx", outputs), min_face_px=1, min_score=0.3)
    (faces,) = detector.detect([BLACK])
    assert (detector.name, detector.has_points) == (name, True)
    assert np.array_equal(faces.scores, np.sort(faces.scores)[::-1])
    score, box, points = max(plain(outputs), key=lambda face: face[0])
    assert faces.scores[0] == pytest.approx(score, abs=1e-6)
    assert np.allclose(faces.boxes[0], box, rtol=1e-6, atol=1e-5)
    assert np.allclose(faces.landmarks[0], points, rtol=1e-6, atol=1e-5)


def test_logits_of_a_network_that_ends_before_its_softmax_become_probabilities():
    outputs = retinaface_outputs(np.random.default_rng(3))
    logits = np.random.default_rng(4).normal(size=rows(outputs["confidences"]).shape)
    head = RetinaFace(0, 1, 2)
    found = head.decode([rows(outputs["boxes"]), logits, rows(outputs["points"])], HEIGHT, WIDTH, 1e-9)
    assert np.allclose(found.scores, np.exp(logits[:, 1]) / np.exp(logits).sum(1), atol=1e-12)


def one_face(tmp_path, shape=(1, 3, HEIGHT, WIDTH), points=True):
    """A SCRFD that always finds a face of 32 x 24 pixels at (32, 24) of its canvas."""
    outputs = {key: np.zeros_like(value) for key, value in scrfd_outputs(np.random.default_rng(0), points).items()}
    cell = 2 * (3 * GRIDS[8][1] + 4)
    outputs["score_8"][cell] = 0.9
    outputs["bbox_8"][cell] = [0, 0, 4, 3]
    outputs["score_8"][cell + 1] = 0.8  # suppressed
    outputs["bbox_8"][cell + 1] = [0, 0, 4, 2.9]
    return save_graph(tmp_path / f"one-{len(shape)}-{points}.onnx", outputs, shape)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH), (HEIGHT // 2, WIDTH // 2), (128, 96)])
def test_faces_of_a_fixed_canvas_are_in_pixels_of_the_photo(tmp_path, shape):
    detector = OnnxDetector(one_face(tmp_path), min_face_px=1)
    (faces,) = detector.detect([np.zeros((*shape, 3), np.uint8)])
    share = max(shape[0] / HEIGHT, shape[1] / WIDTH)
    assert np.allclose(faces.boxes, [np.array([32, 24, 64, 48]) * share])
    assert np.allclose(faces.landmarks[0], np.array([32, 24]) * share)


def test_faces_below_the_smallest_are_left_out(tmp_path):
    path = one_face(tmp_path)
    for least, count in ((32, 1), (32.1, 0)):
        (faces,) = open_detector(path, min_face_px=least).detect([BLACK])
        assert len(faces.boxes) == count


def test_photos_go_on_canvases_of_whole_cells_and_none_is_enlarged():
    assert fit(250, 250, None, 640) == ((256, 256), (250, 250))
    assert fit(3000, 4000, None, 640) == ((480, 640), (480, 640))
    assert fit(1, 5000, None, 640) == ((32, 640), (1, 640))
    assert fit(10, 20, (64, 96), 640) == ((64, 96), (48, 96))
    photo = np.full((40, 50, 3), 7, np.uint8)
    (canvas,) = draw([photo], [fit(40, 50, None, 640)])
    assert canvas.shape == (64, 64, 3)
    assert (canvas[:40, :50] == 7).all()
    assert canvas.sum() == photo.sum()


def test_a_detector_without_points_is_refused_where_they_are_needed(tmp_path):
    path = one_face(tmp_path, points=False)
    assert np.isnan(open_detector(path).detect([BLACK])[0].landmarks).all()
    with pytest.raises(UserError, match="without landmarks; add --crop box"):
        read_detector_file(path, points=True)


def test_a_file_that_changed_since_the_job_began_is_refused(tmp_path):
    path = one_face(tmp_path)
    stored = read_detector_file(path, points=True)
    assert stored == DetectorFile(path=path, name="scrfd", sha256=open_detector(path).digest)
    path.write_bytes(path.read_bytes() + b"\x62\x00")  # an empty field more
    with pytest.raises(UserError, match="put the old file back"):
        stored.check(open_detector(path))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.ClearField("raw_data")


def in_a_branch(model):
    """A constant of another file, two graphs down."""
    body = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(np.zeros(2, np.float32), "w")])
    body.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("If", ["pictures"], ["y"], then_branch=body, else_branch=body))


def foreign_operators(model):
    model.opset_import.add(domain="com.example.plugins", version=1)


def nchw_bytes(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


BAD = {
    "no such": (None, "No such file"),
    "text": (b"hello", "not ONNX"),
    "empty": (b"", "onnxruntime cannot load it|not ONNX"),
    "external": (external, "keeps weights in other files"),
    "branch": (in_a_branch, "keeps weights in other files"),
    "operators": (foreign_operators, r"operators of com\.example\.plugins"),
    "bytes": (nchw_bytes, r"tensor\(uint8\).*float32 \[B, 3, H, W\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_safe_network_is_refused(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "net.onnx"
    if callable(content):
        save_graph(path, scrfd_outputs(np.random.default_rng(0)), change=content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_detector(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("network", ["pnet", "rnet", "onet"])
def test_one_network_of_a_trained_cascade_is_refused_by_what_it_is(tmp_path, network):
    paths = {path.stem.removeprefix("own-"): path for path in export_networks(open_networks(), tmp_path / "own")}
    said = rf"own-{network}\.onnx: is one network of a trained cascade, headcount\.mtcnn\.{network}; give the \.safe"
    with pytest.raises(UserError, match=said):
        open_detector(paths[network])


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="expected at most 1000"):
        open_detector(one_face(tmp_path))


@pytest.mark.parametrize("outputs", [{"embedding": np.zeros((1, 512))}, {"a": np.zeros((12, 1)), "b": np.zeros(7)}])
def test_a_network_of_another_kind_is_refused_with_what_was_found_and_expected(tmp_path, outputs):
    path = save_graph(tmp_path / "net.onnx", outputs)
    with pytest.raises(UserError, match=r"net\.onnx: outputs .* are of no known kind; expected .*SCRFD.*YuNet"):
        open_detector(path)


def test_a_network_of_one_size_that_does_not_say_so_is_refused(tmp_path):
    def product(model):
        nodes = [helper.make_node("Flatten", ["pictures"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["a"])]
        del model.graph.node[:], model.graph.output[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((3 * 112 * 112, 8), np.float32), "w"))
        model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))

    path = save_graph(tmp_path / "net.onnx", {"a": np.zeros(8)}, ("n", 3, "h", "w"), product)
    with pytest.raises(UserError, match=r"net\.onnx: onnxruntime: .*; expected a network that takes pictures"):
        open_detector(path)


def test_a_batch_beyond_reason_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected 1 to 256 pictures at once"):
        open_detector(one_face(tmp_path, (100_000, 3, HEIGHT, WIDTH)))


def test_a_device_whose_libraries_do_not_load_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, providers: real(data, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(UserError, match="its CUDA libraries are not there"):
        open_detector(one_face(tmp_path), device="cuda")


def test_an_input_that_is_no_whole_number_of_cells_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected multiples of 32"):
        open_detector(one_face(tmp_path, (1, 3, 65, 96)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (0.6, 0.7, 0.7)}, "use --min-score"),
        ({"min_score": 1.5}, "between 0 and 1"),
        ({"device": "cuda"}, "onnxruntime here has"),
    ],
)
def test_options_that_do_not_fit_a_network_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        open_detector(one_face(tmp_path), **options)


def test_a_score_and_thresholds_of_the_cascade_do_not_go_together():
    with pytest.raises(UserError, match="give one of the two"):
        open_detector(thresholds=(0.6, 0.7, 0.7), min_score=0.9)
    with pytest.raises(UserError, match=r"expected a \.safetensors"):
        open_detector(Path("net.pt"))


@pytest.mark.skipif(not SCRFD.is_file(), reason="no SCRFD here: ../shared/real")
def test_a_real_scrfd_is_decoded_as_the_plain_formula_says():
    from tests.prep.test_mtcnn import portrait

    session = graphs.Graph(SCRFD, "cpu")
    canvases = draw([portrait(0.4)], [fit(*portrait(0.4).shape[:2], None, 640)])
    height, width = canvases.shape[1:3]
    raw = session.run(np.ascontiguousarray((canvases.astype(np.float32) - 127.5).transpose(0, 3, 1, 2) / 128))
    head = Scrfd.of(session.names, [each.shape for each in raw], height, width)
    found = head.decode(raw, height, width, 0.5)
    expected = []
    for number, stride in enumerate((8, 16, 32)):
        scores, boxes, points = (raw[number + 3 * kind].astype(np.float64) for kind in range(3))
        for row in np.flatnonzero(scores[:, 0] >= 0.5):
            corner = np.array([row // 2 % (width // stride), row // 2 // (width // stride)]) * stride
            box = [*(corner - stride * boxes[row, :2]), *(corner + stride * boxes[row, 2:])]
            expected.append((scores[row, 0], box, corner + stride * points[row].reshape(5, 2)))
    assert len(expected) == len(found.scores) > 2
    for got, number in zip((found.scores, found.boxes, found.points), range(3), strict=True):
        assert np.abs(got - np.array([face[number] for face in expected])).max() < 1e-5
    (faces,) = open_detector(SCRFD).detect([portrait(0.4)])
    assert len(faces.boxes) == 1


def test_several_pictures_go_through_a_network_that_takes_them_at_once(tmp_path):
    """Outputs depend on the number of pictures: [B, rows, numbers] by Expand over the input's first axis."""
    outputs = {key: np.float32(value) for key, value in yunet_outputs(np.random.default_rng(5)).items()}

    def expand(model):
        graph = model.graph
        del graph.node[:]
        graph.initializer.append(numpy_helper.from_array(np.array([1, 1], np.int64), "ones"))
        graph.node.append(helper.make_node("Shape", ["pictures"], ["count"], start=0, end=1))
        graph.node.append(helper.make_node("Concat", ["count", "ones"], ["shape"], axis=0))
        for name in outputs:
            graph.node.append(helper.make_node("Expand", [f"{name}_", "shape"], [name]))
        model.opset_import[0].version = 15

    path = save_graph(tmp_path / "net.onnx", outputs, ("B", 3, HEIGHT, WIDTH), expand)
    detector = OnnxDetector(path, min_face_px=1, batch_px=2 * HEIGHT * WIDTH)
    (alone,) = detector.detect([BLACK])
    calls = []
    run = detector._graph.run
    detector._graph.run = lambda values: calls.append(len(values)) or run(values)
    for faces in detector.detect([BLACK] * 5):
        assert np.array_equal(faces.boxes, alone.boxes)
    assert calls == [2, 2, 1]
