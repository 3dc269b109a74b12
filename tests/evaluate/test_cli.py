"""`headcount eval` as a user calls it."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto

from dist_train.evaluate.calibration import read_calibration
from dist_train.evaluate.models import load_model
from launch.cli import run
from tests.evaluate.faces import color_picture, write_role_set
from tests.evaluate.models import write_color_model
from tests.evaluate.test_bin import Attack
from tests.evaluate.test_ijb import write_ijb
from tests.evaluate.test_verification import tiny_set
from tests.export.test_runtime import write_model


def write_bin(path, images, same):
    path.write_bytes(pickle.dumps((images, [bool(each) for each in same]), protocol=2))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One set in each layout, and two models: of 16 and of 112 pixels."""
    root = tmp_path_factory.mktemp("eval")
    wrong = np.isin(np.arange(30), (4, 11))  # two pairs that no model gets right
    write_bin(root / "tiny.bin", tiny_set().images, tiny_set().same ^ wrong)
    write_role_set(root / "heldout")
    write_role_set(root / "strangers", identities=7)
    write_ijb(root / "IJBB")
    write_color_model(root / "small.onnx", 16, seed=0)
    write_color_model(root / "large.onnx", 112, dim=2, seed=1)
    return root


@pytest.fixture
def evaluate(monkeypatch, capsys, place):
    """Call `headcount eval` in the folder of the sets: exit status, standard output, standard error."""
    monkeypatch.chdir(place)
    # The tests' own log handlers would take the messages.
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headcount", "eval", *words])
        status = run()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_models_stand_side_by_side_in_table_json_and_report(evaluate, place, caplog):
    sets = [word for name in ("tiny.bin", "heldout", "IJBB") for word in ("--sets", name)]
    status, out, err = evaluate(
        "small.onnx", "large.onnx", *sets, "--json", "out/figures.json", "--report", "out/report.html"
    )
    assert status == 0, err
    titles = re.findall(r"^(\w.*)\n\w.*\n-+ ", out, flags=re.MULTILINE)
    assert titles == ["Verification", "Templates, 1:1", "Identification"]
    for name in ("tiny", "ijbb", "heldout", "ijbb S1", "ijbb S2"):
        assert re.search(rf"^{name} · small  ", out, flags=re.MULTILINE)
        assert re.search(rf"^{name} · large  ", out, flags=re.MULTILINE)
    assert " <" in out, "the better of the two is marked"
    small, large = json.loads((place / "out" / "figures.json").read_text())
    assert (small["model"], large["model"]) == ("small", "large")
    (verified,) = small["verification"]
    assert f"{100 * verified['accuracy']:.2f} ± {100 * verified['accuracy_std']:.2f}" in out
    assert small["identification"][0]["cmc"][-1] == 1
    assert small["ijb"][0]["pairs"] == 153
    assert [each["set"] for each in small["ijb"][0]["identification"]] == ["ijbb S1", "ijbb S2"]
    page = (place / "out" / "report.html").read_text()
    for words in (
        "ROC: tiny",
        "DET: ijbb",
        "CMC: ijbb S2",
        "Scores: ijbb · large",
        "Hardest wrong pairs: tiny · small",
    ):
        assert words in page
    told = [
        line for line in caplog.messages if "pictures of 16 x 16 px are scaled to the 112 px that the model" in line
    ]
    assert any("tiny" in line for line in told)
    assert len(told) == len(set(told)), "each set is told of once"


def test_all_pairs_of_a_set_with_roles_count_where_it_is_asked_for_and_give_the_models_thresholds(evaluate, place):
    status, out, err = evaluate("small.onnx", "--all-pairs", "heldout", "--json", "points.json", "--no-flip")
    assert status == 0, err
    assert "Operating points" in out
    assert "Identification" not in out
    owner = load_model(place / "small.onnx", torch.device("cpu")).owner()
    found = read_calibration(place / "points.json", owner)
    assert (found.set, found.flip, found.told) == ("heldout", False, {})
    assert [point.fmr for point in found.operating_points][:2] == [0.1, 0.01]
    threshold, _ = found.at(0.1)
    assert -1 <= threshold <= 1.001


def test_mates_are_hidden_among_the_pictures_of_another_set(evaluate, place):
    status, out, err = evaluate(
        "small.onnx", "-s", "heldout", "--distractors", "strangers", "--report", "far.html", "--json", "far.json"
    )
    assert status == 0, err
    assert re.search(r"rank-1 % in 10  rank-1 % in 21 ", out)
    (found,) = json.loads((place / "far.json").read_text())[0]["distractors"]
    assert list(found["rank1"]) == ["10", "21"]
    page = (place / "far.html").read_text()
    assert "Rank-1: heldout + strangers" in page
    assert "MegaFace" in page


def test_models_of_others_are_given_what_the_options_say_and_it_is_printed(evaluate, place, caplog):
    caplog.set_level("INFO")
    ours = {"input_type": "float32", "input_layout": "NCHW", "input_color": "RGB"}
    write_model(place / "ours.onnx", size=16, metadata=ours | {"input_mean": "127.5", "input_std": "127.5"})
    write_model(place / "theirs.onnx", size=16, batch=4, kind=TensorProto.FLOAT, layout="NHWC")
    words = ["-s", "tiny.bin", "--no-flip", "--input-mean", "1,2,3", "--input-std", "2", "--input-color", "bgr"]
    status, out, err = evaluate("ours.onnx", "theirs.onnx", *words)
    assert status == 0, err
    given = "model theirs.onnx does not say what it takes; it is given float32 [B, 16, 16, 3], blue first, "
    assert given + "(value - 1,2,3) / 2,2,2" in caplog.text
    assert "model ours.onnx" not in caplog.text
    assert re.search(r"^tiny · theirs ", out, flags=re.MULTILINE)
    status, _, err = evaluate("ours.onnx", *words)
    assert status == 2
    assert "ours.onnx: states itself what it takes, and --input-mean or --input-range says otherwise" in err
    status, _, err = evaluate("ours.onnx", "-s", "tiny.bin", "--input-range", "-1..1", "--input-color", "rgb")
    assert status == 0, err


def test_a_set_of_one_kind_and_a_model_of_one_embedding_give_figures_that_json_knows(evaluate, place):
    write_bin(place / "single.bin", tiny_set().images, np.ones(30))
    write_color_model(place / "zero.onnx", 16, scale=0.0)
    words = ["-s", "single.bin", "-s", "tiny.bin", "-s", "heldout", "--json", "zero.json", "--report", "zero.html"]
    status, out, err = evaluate("small.onnx", "zero.onnx", *words)
    assert status == 0, err
    assert "all 30 pairs show the same identity" in out

    def refused(word):
        raise AssertionError(f"{word} is not JSON")

    small, zero = json.loads((place / "zero.json").read_text(), parse_constant=refused)
    for model in (small, zero):
        single = model["verification"][0]
        assert (single["accuracy"], single["threshold"], single["tar_at_far"]) == (None, None, None)
    assert set(zero["verification"][1]["tar_at_far"].values()) == {0}
    assert zero["identification"][0]["rank1"] == 0
    assert {tpir for tpir in zero["identification"][0]["tpir_at_fpir"].values() if tpir is not None} == {0}


def test_names_of_sets_and_models_are_text_in_a_report(evaluate, place):
    name = "<img src=x onerror=alert(1)>"
    (place / f"{name}.bin").write_bytes((place / "tiny.bin").read_bytes())
    (place / f"{name}.onnx").write_bytes((place / "small.onnx").read_bytes())
    status, _, err = evaluate(f"{name}.onnx", "small.onnx", "-s", f"{name}.bin", "--report", "names.html")
    assert status == 0, err
    page = (place / "names.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def wrong(place):
    """By name of a test: what is called, the exit status and the message."""
    pictures, same = tiny_set().images, tiny_set().same
    write_bin(place / "odd.bin", pictures[:-1], same)
    whole = (place / "tiny.bin").read_bytes()
    (place / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (place / "evil.bin").write_bytes(pickle.dumps((pictures, [Attack(place / "harm")])))
    write_bin(place / "rotten.bin", [*pictures[:-1], b"no picture"], same)
    write_color_model(place / "nan.onnx", 16, scale=np.nan)
    (place / "junk.onnx").write_bytes(b"no model")
    write_role_set(place / "empty", roles=("probe", "probe"))
    root = write_ijb(place / "IJBC", "ijbc")
    pairs = root / "meta" / "ijbc_template_pair_label.txt"
    pairs.write_text(pairs.read_text() + "7777 100 1\n")
    return {
        "a pickle that calls code": (["small.onnx", "-s", "evil.bin"], 2, r"evil.bin: its pickle calls posix.mkdir"),
        "an odd number of pictures": (["small.onnx", "-s", "odd.bin"], 2, "59 pictures for 30 pairs, expected 60"),
        "a cut file": (["small.onnx", "-s", "cut.bin"], 2, "cut.bin: not a readable .bin: the file is cut off"),
        "a damaged picture": (["small.onnx", "-s", "rotten.bin"], 1, "rotten, picture 59: cannot be decoded"),
        "no such file": (["small.onnx", "-s", "none.bin"], 2, "none.bin: No such file"),
        "two sets of one name": (
            ["small.onnx", "-s", "tiny.bin", "-s", "other/tiny.bin"],
            2,
            "tiny.bin and other/tiny.bin are both called 'tiny' in figures; rename one",
        ),
        "sets beside files of embeddings": (
            ["--fuse", "a.parquet", "-s", "tiny.bin", "--no-flip", "--fmr", "0.1", "--fmr", "0.01"],
            2,
            r"alone, at one --fmr; leave --sets, --no-flip, a second --fmr out",
        ),
        "how to embed beside files of embeddings": (
            ["--fuse", "a.parquet", "--ignore-same", "x", "--rerank", "--batch-size", "8", "--device", "cpu"],
            2,
            "leave --ignore-same, --rerank, --batch-size, --device out",
        ),
        "an input beside files of embeddings": (
            ["--fuse", "a.parquet", "--input-range", "0..1", "--input-size", "32", "--output", "x"],
            2,
            "leave --input-range, --input-size, --output out",
        ),
        "no set": (["small.onnx"], 2, "give --sets FILE.bin or --sets DIRECTORY"),
        "templates without pictures": (
            ["large.onnx", "-s", "IJBC"],
            2,
            "template 7777 has no pictures in ijbc_face_tid",
        ),
        "an empty gallery": (["small.onnx", "-s", "empty"], 2, "0 gallery pictures and 36 probes"),
        "embeddings that are not finite": (["nan.onnx", "-s", "tiny.bin"], 1, "embedding of picture 0 is not finite"),
        "no ONNX": (["junk.onnx", "-s", "tiny.bin"], 2, "junk.onnx: onnxruntime cannot load it"),
        "no model": (["tiny.bin", "-s", "tiny.bin"], 2, "expected a run directory, a checkpoint directory, an .onnx"),
        "a range beside a mean": (
            ["small.onnx", "-s", "tiny.bin", "--input-range", "0..1", "--input-mean", "1"],
            2,
            "leave --input-mean and --input-std out",
        ),
        "a mean alone": (["small.onnx", "-s", "tiny.bin", "--input-mean", "1"], 2, "go together"),
        "a mean of two channels": (
            ["small.onnx", "-s", "tiny.bin", "--input-mean", "1,2", "--input-std", "1"],
            2,
            "--input-mean '1,2': expected a number, or three",
        ),
        "a deviation of nothing": (
            ["small.onnx", "-s", "tiny.bin", "--input-mean", "1", "--input-std", "0"],
            2,
            "division by zero",
        ),
        "a mean that is none": (
            ["small.onnx", "-s", "tiny.bin", "--input-mean", "nan", "--input-std", "1"],
            2,
            "--input-mean 'nan': expected a number, or three",
        ),
        "an output that is not there": (["small.onnx", "-s", "tiny.bin", "--output", "fc1"], 2, "has no output 'fc1'"),
        "an unwritable report": (
            ["small.onnx", "-s", "tiny.bin", "--report", "tiny.bin/x.html"],
            1,
            "cannot be written",
        ),
    }


def test_each_mistake_ends_with_its_status_and_one_line_that_names_it(evaluate, place):
    for name, (words, expected, message) in wrong(place).items():
        status, _, err = evaluate(*words)
        assert status == expected, (name, err)
        assert re.search(message, err), (name, err)
        assert err.count("\n") == 1, (name, err)
    assert not (place / "harm").exists()


def test_pictures_of_several_formats_are_evaluated(evaluate, place):
    import cv2

    images = [*tiny_set().images]
    picture = cv2.imdecode(np.frombuffer(images[0], np.uint8), cv2.IMREAD_COLOR)
    images[0] = cv2.imencode(".webp", picture)[1].tobytes()
    images[1] = color_picture((0, 0, 0), size=20)
    write_bin(place / "mixed.bin", images, tiny_set().same)
    assert evaluate("small.onnx", "-s", "mixed.bin", "--report", "mixed.html")[0] == 0
