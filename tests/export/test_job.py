"""`headcount export` as a user calls it, on a small trained run."""

import json
import os
import pickle
import sys

import cv2
import pytest
import torch
import yaml

from dist_train.checkpoint.load import load_backbone
from dist_train.errors import UserError
from dist_train.evaluate.calibration import read_calibration, stated_calibration
from dist_train.evaluate.models import load_model
from dist_train.export.job import ExportJob, export_forms
from dist_train.export.runtime import OnnxModel
from dist_train.export.train_int8 import LEAST_STEPS
from dist_train.run_files import LOCK_NAME
from dist_train.runtime import extras
from dist_train.runtime.lock import Lock
from dist_train.weights.digest import digest_weights
from launch.cli import run
from tests.evaluate.figures import figures, point, write_figures
from tests.sets import picture, write_set
from tests.single import losses, trainer

SIZE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A set of shards, one of pairs, and a run of a few steps."""
    root = tmp_path_factory.mktemp("export")
    write_set(root / "set", classes=10, views=8, size=SIZE)
    write_set(root / "few", classes=2, views=3, size=SIZE)
    pairs = [((a, 20), (a if same else a + 1, 21)) for a in range(10) for same in (True, False)]
    encoded = [cv2.imencode(".png", picture(*one, SIZE))[1].tobytes() for pair in pairs for one in pair]
    (root / "pairs.bin").write_bytes(pickle.dumps((encoded, [i % 2 == 0 for i in range(20)]), protocol=2))
    (root / "other").mkdir()
    for name, count in (("other/pairs.bin", 20), ("short.bin", 9)):
        body = (encoded[: 2 * count], [i % 2 == 0 for i in range(count)])
        (root / name).write_bytes(pickle.dumps(body, protocol=2))
    work = trainer(root, root / "set")
    losses(work, 6)
    work.save()
    work.checkpointer.wait()
    work.close()
    return root


@pytest.fixture
def export(monkeypatch, capsys, place):
    """Call `headcount export` in that folder: exit status, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)  # the tests' own log handlers would take the messages

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headcount", "export", *map(str, words)])
        status = run()
        captured = capsys.readouterr()
        return status, captured.out, " ".join(captured.err.split())

    return call


def test_every_form_is_written_measured_and_stated(export, place, tmp_path):
    out = tmp_path / "out" / "face.onnx"
    words = ("--int8", "static", "--calibrate", "set", "--int8", "dynamic", "--pt2", "--sets", "pairs.bin")
    status, table, err = export("run", "-o", out, "--normalize-inside", *words, "--check-images", "20")
    assert status == 0, err
    body = json.loads((out.parent / "face.export.json").read_text())
    names = ["pytorch float32", "onnx float32", "onnx int8 static", "onnx int8 dynamic", "torch.export float32"]
    assert [row["name"] for row in body["forms"]] == names
    assert all(name in table for name in [*names, "pairs %", "cosine mean", "lowest", "size", "images/s"])
    files = {row["file"] for row in body["forms"][1:]}
    assert files == {"face.onnx", "face.int8.onnx", "face.int8-dynamic.onnx", "face.pt2"}
    assert {path.name for path in out.parent.iterdir()} == files | {"face.export.json"}
    for row in body["forms"]:
        exact = "int8" not in row["name"]
        assert row["cosine_min"] >= (0.99999 if exact else 0.95)
        assert row["cosine_mean"] >= row["cosine_min"]
        assert 0.5 <= row["accuracy"]["pairs"] <= 1
        assert row["images_per_s"] > 0
    original, onnx, static = body["forms"][:3]
    assert onnx["accuracy"] == original["accuracy"]
    assert static["size_bytes"] < 0.4 * onnx["size_bytes"] == 0.4 * out.stat().st_size
    assert (body["run"], body["step"], body["pictures"], body["pictures_from"]) == ("run", 6, 20, "pairs")
    metadata = OnnxModel(out).metadata
    assert (metadata["run"], metadata["step"], metadata["opset"]) == ("run", "6", "18")
    assert (metadata["input_layout"], metadata["input_mean"], metadata["input_std"]) == ("NHWC", "0", "1")


def test_without_options_the_runs_own_set_proves_the_onnx_file(export, place):
    status, table, err = export("run", "--check-images", "200")
    assert status == 0, err
    body = json.loads((place / "run" / "model.export.json").read_text())
    assert body["pictures_from"] == str(place / "set")
    assert "note: " in table
    assert "has only 80 pictures to compare on" in table
    assert body["forms"][1]["cosine_min"] >= 0.99999
    metadata = OnnxModel(place / "run" / "model.onnx").metadata
    assert (metadata["input_layout"], metadata["input_mean"], metadata["input_std"]) == ("NCHW", "127.5", "127.5")
    assert metadata["producer"].startswith("headcount ")


def test_one_checkpoint_is_exported_beside_its_run_and_not_into_itself(export, place):
    (checkpoint,) = (place / "run" / "checkpoints").glob("step-*")
    before = sorted(path.name for path in checkpoint.iterdir())
    status, _, err = export(checkpoint)
    assert status == 0, err
    assert (place / "run" / "model-step-00000006.onnx").exists()
    assert sorted(path.name for path in checkpoint.iterdir()) == before


def test_what_killed_exports_left_is_removed_unless_its_writer_may_be_at_work(export, tmp_path):
    own = {f".m[1].{ending}.host.1234.tmp" for ending in ("onnx", "int8.onnx", "pt2", "engine", "export.json")}
    others = {".other.onnx.host.1234.tmp", ".m1.onnx.host.1234.tmp", ".m[1].v2.onnx.host.1234.tmp", "m[1].onnx.tmp"}
    for name in own | others:
        (tmp_path / name).touch()
    out, lock = tmp_path / "m[1].onnx", tmp_path / ".m[1].export.lock"
    with Lock(lock):
        status, _, err = export("run", "-o", out)
    assert status == 2
    assert f"{out}: another job is working on it (process {os.getpid()} on" in err
    with Lock(tmp_path / LOCK_NAME):  # as if that were the directory of a run, which ends with an export of its own
        status, _, err = export("run", "-o", out)
    assert status == 0, err
    left = {path.name for path in tmp_path.iterdir()} - {LOCK_NAME}
    assert left == own | others | {"m[1].onnx", "m[1].export.json"}
    status, _, err = export("run", "-o", out)
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} - {LOCK_NAME} == left - own


def test_thresholds_of_the_run_are_stated_by_its_float_file_which_is_known_by_the_runs_weights(export, place, tmp_path):
    digest = digest_weights(load_backbone(place / "run")[0])
    measured = write_figures(tmp_path / "figures.json", figures(digest, [point(1e-2, 0.25)]))
    status, _, err = export("run", "-o", tmp_path / "m.onnx", "--int8", "dynamic", "--calibration", measured)
    assert status == 0, err
    model = load_model(tmp_path / "m.onnx", torch.device("cpu"))
    assert model.digest() != model.exported_from() == digest
    assert stated_calibration(model.thresholds(), model.owner()).at(1e-2)[0] == 0.25
    assert read_calibration(measured, model.owner()).model_sha256 == digest
    int8 = OnnxModel(tmp_path / "m.int8-dynamic.onnx").metadata
    assert {"weights_sha256", "thresholds"} & set(int8) == set(), "its embeddings are others"
    others = write_figures(tmp_path / "others.json", figures("0" * 64, [point(1e-2, 0.25)]))
    status, _, err = export("run", "-o", tmp_path / "other.onnx", "--calibration", others)
    assert status == 2
    assert "figures of tiny (000000000000), and none of run" in err
    assert not (tmp_path / "other.onnx").exists()


def test_a_pt2_file_runs_without_our_code_and_states_its_convention(export, place, tmp_path):
    status, _, err = export("run", "-o", tmp_path / "m.onnx", "--pt2")
    assert status == 0, err
    stated = {"convention.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=stated)
    images = torch.rand(5, 3, SIZE, SIZE) * 2 - 1
    backbone = load_backbone(place / "run")[0]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), backbone(images), atol=1e-4, rtol=1e-4)
    assert json.loads(stated["convention.json"])["input_layout"] == "NCHW"


def test_dear_layers_stay_in_float_and_all_files_take_the_number_of_pictures_that_was_asked_for(export, tmp_path):
    words = ("--int8", "static", "--calibrate", "set", "--sensitivity", "--float-layers", "2", "--float16")
    status, table, err = export("run", "-o", tmp_path / "m.onnx", *words, "--batch", "3", "--opset", "21")
    assert status == 0, err
    body = json.loads((tmp_path / "m.export.json").read_text())
    assert [row["name"] for row in body["forms"][2:]] == ["onnx float16", "onnx int8 static"]
    assert [row["stays_float"] for row in body["sensitivity"]] == [True, True] + [False] * (
        len(body["sensitivity"]) - 2
    )
    assert body["forms"][2]["cosine_min"] > 0.999
    assert "What each layer alone costs in int8" in table
    for name in ("m", "m.float16", "m.int8"):
        model = OnnxModel(tmp_path / f"{name}.onnx")
        assert (model.metadata["batch"], model.metadata["opset"]) == ("3", "21")
        assert ("weights_sha256" in model.metadata) == (name == "m")


def test_a_repository_for_triton_is_made_of_a_run_or_of_what_was_exported_from_it(export, place, tmp_path):
    status, out, err = export("run", "-o", tmp_path / "m.onnx", "--triton", tmp_path / "a")
    assert status == 0, err
    assert f"model repository: {tmp_path / 'a'}" in out
    status, out, err = export(tmp_path / "m.onnx", "--triton", tmp_path / "b")
    assert status == 0, err
    assert out == f"model repository: {tmp_path / 'b'}\n"
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(name) for name in names] == [
        "decode/1/model.py",
        "decode/1/picture_header.py",
        "decode/config.pbtxt",
        "embed/1/model.onnx",
        "embed/config.pbtxt",
        "headcount/config.pbtxt",
    ]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "--int8", "static"], 2, "give a set of shards like those that the model will see: --calibrate SET"),
        (["run", "--calibrate", "set"], 2, "only --int8 static and --int8 trained look at pictures"),
        (
            ["run", "--int8", "static", "--calibrate", "few"],
            2,
            "--calibrate few: 6 pictures to calibrate with, expected",
        ),
        (["run", "--int8", "static", "--calibrate", "nowhere"], 2, "nowhere: no such directory"),
        (["run", "--sensitivity"], 2, "ranks the layers of --int8 static"),
        (["run", "--int8", "dynamic", "--sensitivity"], 2, "ranks the layers of --int8 static"),
        (["run", "--float-layers", "2"], 2, "are found by --sensitivity"),
        (["run", "--triton", "few"], 2, "--triton few: is not empty"),
        (["run", "--triton", "new", "--batch", "3"], 2, "leave --batch out"),
        (["run", "--triton", "new", "-o", "new/m.onnx"], 2, "lies in --triton new, which holds the repository alone"),
        (["run", "--triton", "pairs.bin/new"], 1, "cannot be written"),
        (["pairs.onnx"], 2, "is exported already; a model repository can be made of it"),
        (["pairs.onnx", "--triton", "new", "--pt2"], 2, "by --triton DIR alone"),
        (["pairs.onnx", "--triton", "new"], 2, "pairs.onnx: no such file"),
        (["run", "--batch", "0"], 2, "greater than or equal to 1"),
        (["run", "-o", "model.bin"], 2, "expected a file that ends in .onnx"),
        (["run", "-o", "pairs.bin/m.onnx"], 1, "cannot be written"),
        (["run", "--sets", "set"], 2, "--sets set: expected the .bin file of a verification set"),
        (
            ["run", "--sets", "pairs.bin", "--sets", "other/pairs.bin"],
            2,
            "sets pairs.bin and other/pairs.bin are both called 'pairs' in figures; rename one",
        ),
        (["run", "--sets", "short.bin"], 2, "verification set short: 9 pairs, expected at least 10"),
        (["set"], 2, "set: no checkpoint found"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(export, place, words, status, message):
    before = sorted(path for path in place.rglob("*") if path.is_file())
    found, _, err = export(*words)
    assert found == status, err
    assert message in err
    assert sorted(path for path in place.rglob("*") if path.is_file()) == before


def test_a_checkpoint_of_another_architecture_is_refused(export, place):
    config = place / "run" / "config.yaml"
    text = config.read_text()
    other = yaml.safe_load(text)
    other["backbone"]["name"] = "mobilefacenet"
    config.write_text(yaml.safe_dump(other))
    try:
        status, _, err = export("run")
    finally:
        config.write_text(text)
    assert status == 2
    assert "step-00000006: holds another architecture than config.yaml" in err


def test_tensorrt_without_a_gpu_says_what_is_missing_and_writes_nothing(export, place, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, _, err = export("run", "-o", tmp_path / "m.onnx", "--tensorrt")
    assert status == 2
    assert "missing: the package tensorrt (`pip install tensorrt`" in err
    assert "a CUDA GPU with its driver" in err
    assert not list(tmp_path.iterdir())


def test_int8_trained_is_written_beside_the_rest_and_states_what_it_is(export, tmp_path):
    out = tmp_path / "face.onnx"
    status, table, err = export("run", "-o", out, "--int8", "trained", "--calibrate", "set", "--steps", LEAST_STEPS)
    assert status == 0, err
    assert "onnx int8 trained" in table
    files = {"face.onnx", "face.int8-trained.onnx", "face.export.json"}
    assert {path.name for path in tmp_path.iterdir()} == files
    plain, trained = (OnnxModel(tmp_path / name).metadata for name in ("face.onnx", "face.int8-trained.onnx"))
    stated = {"quantization": "int8 trained", "training_steps": str(LEAST_STEPS)}
    assert trained == {key: value for key, value in plain.items() if key != "weights_sha256"} | stated
    row = json.loads((tmp_path / "face.export.json").read_text())["forms"][-1]
    assert row["cosine_min"] > 0.95


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--int8 trained: the ranges of activations come from real pictures"),
        (["--calibrate", "few"], "--calibrate few: 6 pictures to train int8 on, expected at least 32"),
        (["--calibrate", "nowhere"], "nowhere"),
        (["--calibrate", "set", "--steps", LEAST_STEPS - 1], "--steps"),
    ],
)
def test_int8_trained_refuses_what_it_cannot_train_on_before_it_writes(export, tmp_path, words, message):
    status, _, err = export("run", "-o", tmp_path / "face.onnx", "--int8", "trained", *words)
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_int8_trained_refuses_too_few_steps_from_python_too(place, tmp_path):
    job = ExportJob(place / "run", tmp_path / "face.onnx", int8=("trained",), calibrate=place / "set", steps=10)
    with pytest.raises(UserError, match="--steps 10: expected at least 11 to train int8 in"):
        export_forms(job)
    assert not list(tmp_path.iterdir())


def test_int8_trained_names_the_extra_that_it_needs(export, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "qat", ("no_such_package",))
    status, _, err = export("run", "-o", tmp_path / "f.onnx", "--int8", "trained", "--calibrate", "set")
    assert status == 2
    assert "--int8 trained: needs no_such_package, not installed here" in err
    assert "headcount[qat]" in err
