"""The benchmark that waits for a GPU: on the CPU at small sizes, and with parts that end their process."""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import backbone, detector, head_correct, inputs, storage
from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.head_correct import Case, errors, shrunk
from benchmarks.gpu_parts.parts import PARTS, share_s
from benchmarks.gpu_parts.program import Steps, random_batch, synthetic
from dist_train.errors import NonFiniteError
from dist_train.head import HeadConfig
from tests.waits import NEAR, Waits

SCRIPT = Path(gpu.__file__)


@pytest.mark.job
def test_parts_give_results_on_a_cpu_and_name_what_they_lack(tmp_path):
    out = tmp_path / "out" / "gpu.jsonl"
    parts = set(PARTS) - {"head-correct"}  # which has a test of its own
    command = [sys.executable, SCRIPT, "--device", "cpu", "--small", "--out", out, "--only", ",".join(sorted(parts))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # the script finds the repository itself
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.stdout.splitlines() == out.read_text().splitlines()
    assert [line for line in lines if "error" in line or line.get("ok") is False] == []
    assert done.returncode == 0, done.stderr
    assert {line["part"] for line in lines} == parts
    assert {line["part"] for line in lines if line.get("skipped") == "needs a GPU"} == {"waits", "input", "compile"}
    assert out.with_suffix(".png").exists()
    assert "Self CPU" in out.with_name("gpu-profile-head-1000000-1.txt").read_text()


BARE = """
import importlib, sys
from tests.launch.without import Hiding
hidden = frozenset(sys.argv[1].split(","))
assert not hidden & sys.modules.keys()
sys.meta_path[:] = [Hiding(hidden, tuple(sys.meta_path))]
for part in sys.argv[2:]:
    importlib.import_module("benchmarks.gpu_parts." + part)
"""


@pytest.mark.job
def test_parts_of_the_head_need_torch_numpy_and_pydantic_alone():
    of_head = [PARTS[name] for name in ("head-correct", "head", "storage")]
    assert {part.needs for part in of_head} == {("numpy", "pydantic")}
    others = {needed for part in PARTS.values() for needed in part.needs} - set(of_head[0].needs)
    assert "cv2" in others
    command = [sys.executable, "-c", BARE, ",".join(others), *(part.module for part in of_head)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=gpu.ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.job
def test_a_machine_without_a_gpu_is_named_in_the_line_of_each_part(tmp_path):
    command = [sys.executable, SCRIPT, "--only", "head-correct,onnx", "--out", tmp_path / "gpu.jsonl"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["part"] for line in found] == ["head-correct", "onnx"]
    assert {line["error"] for line in found} == {f"torch {torch.__version__} finds no GPU"}


def test_every_form_of_the_head_is_found_right(tmp_path):
    bench, lines = small_bench(tmp_path)
    head_correct.run(bench)
    wrong = [line for line in lines if not line["ok"]]
    assert not wrong
    assert [line["cases"] for line in lines if "cases" in line] == [len(head_correct.CASES)] * 3


@pytest.mark.parametrize(
    ("case", "arithmetic"),
    [
        (Case({"sample_rate": 0.3, "optimizer": "rowwise_adagrad", "optimizer_eps": 1e-3}), "float32"),
        (Case({"margin": "arcface", "scale": 8.0}, labels=3), "tf32"),
        (Case({"margin": "adaface", "storage": "host"}), "bfloat16"),
    ],
)
def test_a_head_that_takes_other_steps_is_found_wrong(case, arithmetic, tmp_path, monkeypatch):
    bench, _ = small_bench(tmp_path)
    found = errors(bench, shrunk(case), arithmetic)
    assert found["ok"], found
    right = head_correct.Head.step
    monkeypatch.setattr(head_correct.Head, "step", lambda head, lr: right(head, 1.2 * lr))
    assert not errors(bench, shrunk(case), arithmetic)["ok"]


FAKE = """
import json, os, sys, time
parts = sys.argv[sys.argv.index("--only") + 1].split(",")
for part in parts:
    print(json.dumps({"begin": part}), flush=True)
    print(json.dumps({"part": part, "case": "a"}), flush=True)
    if part == "step":
        print("the last words", file=sys.stderr, flush=True)
        os.abort()
    if part == "head":
        time.sleep(60)
    print(json.dumps({"end": part}), flush=True)
"""


@pytest.mark.job
def test_a_part_that_ends_its_process_or_overruns_costs_itself_alone(tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(gpu, "__file__", str(fake))
    monkeypatch.setattr(gpu, "SLACK_S", 0.3)
    monkeypatch.setattr(gpu, "share_s", lambda left, until: 0.2)
    found = list(gpu.results(options(tmp_path, ["device", "step", "head", "onnx"], time.time() + 60)))
    results = [line["part"] for line in found if line["case"] == "a"]
    assert results == ["device", "step", "head", "onnx"]
    broken, late = (line for line in found if "error" in line)
    assert broken["part"] == "step"
    assert broken["error"] == "ended by SIGABRT: the last words"
    assert late["part"] == "head"
    assert "took longer than 0 s, its share of the minutes" in late["error"]


def test_parts_for_which_no_time_is_left_are_named(tmp_path):
    found = list(gpu.results(options(tmp_path, ["device", "onnx"], time.time() - 1)))
    assert [(line["part"], line["skipped"]) for line in found] == [
        ("device", "no time left"),
        ("onnx", "no time left"),
    ]


def test_a_part_may_not_take_more_than_is_left_nor_much_more_than_its_weight():
    until = time.time() + 100
    assert share_s(["onnx"], until) == pytest.approx(100, abs=1)
    weights = [PARTS[name].weight for name in PARTS]
    assert share_s(list(PARTS), until) == pytest.approx(150 * weights[0] / sum(weights), abs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "device,gnu"], "--only: unknown parts gnu; expected some of device, "),
        (["--only", ","], "--only ',': names no part; expected some of device, "),
        (["--minutes", "0"], "--minutes: 0.0, expected more than 0"),
        (["--photos", "/nowhere/at/all"], "--photos /nowhere/at/all: no folder with .jpg, .jpeg, .png"),
        (["--photos", str(SCRIPT.parent)], "benchmarks: no folder with .jpg, .jpeg, .png"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit):
        gpu.read_options()
    assert message in capsys.readouterr().err


def options(folder, parts, until):
    return argparse.Namespace(
        parts=parts, until=until, out=folder / "gpu.jsonl", device="cpu", small=True, photos=None, child=False
    )


def test_whole_steps_wait_for_the_device_no_more_than_training_does_and_read_their_verdicts(tmp_path, monkeypatch):
    monkeypatch.setattr("dist_train.runtime.verdict.LATE_ON", frozenset({"cpu"}))
    program = synthetic(tmp_path, NEAR, classes=40, image_size=32, backbone={"name": "nano", "embedding_dim": 16})
    batch = random_batch(NEAR, 8, 40, 32)
    steps = Steps(program, batch)
    network = program.backbone
    kept = [*network.parameters(), *network.buffers(), *program.head.tables().values()]
    waits = Waits([batch.images, *kept])
    for _ in range(3):  # the first two make what is kept
        waits.found.clear()
        with waits:
            steps()
    assert waits.found == []
    steps.settle()
    batch.images[0] = torch.nan
    steps()
    with pytest.raises(NonFiniteError):
        steps.settle()
    program.close()


def small_bench(tmp_path):
    lines = []
    return Bench(torch.device("cpu"), True, tmp_path / "gpu.jsonl", 60, lines.append), lines


def test_rows_that_are_asked_for_late_are_asked_for_when_the_forward_pass_is_over(tmp_path, monkeypatch):
    seen = []

    class Head:
        def __init__(self, *_, **__):
            pass

        def prepare(self, labels):
            seen.append("prepare")

        def __call__(self, embeddings, labels):
            seen.append("head")
            return embeddings.sum()

        def step(self, lr):
            pass

        def close(self):
            pass

    bench, _ = small_bench(tmp_path)
    monkeypatch.setattr(bench, "wait", lambda: seen.append("wait"))
    monkeypatch.setattr(storage, "Head", Head)
    monkeypatch.setattr(torch, "mm", lambda *_, **__: seen.append("forward"))
    found = storage.overlap(bench, HeadConfig(), 100, 4)
    assert found.keys() == {"ahead_ms", "late_ms", "forward_ms", "bare_step_ms"}
    heads = [at for at, what in enumerate(seen) if what == "head"]
    timed = heads[-6:]  # three of each, by turns
    for at in timed[::2]:
        assert seen[at - 1] == "forward"
        assert "prepare" in seen[heads[heads.index(at) - 1] : at]
    for at in timed[1::2]:
        assert seen[at - 2 : at] == ["forward", "wait"]
        assert "prepare" not in seen[heads[heads.index(at) - 1] : at]


def test_what_a_forward_pass_hides_is_counted_from_what_the_way_of_rows_takes_behind_it():
    found = {"late_ms": 150.0, "ahead_ms": 120.0, "forward_ms": 100.0}
    assert storage.hidden_share(found, 10.0) == pytest.approx(30 / 40)
    assert storage.hidden_share(found, 50.0) is None


def test_a_decoder_that_does_not_smooth_colours_is_right_and_one_that_swaps_them_is_not(tmp_path, monkeypatch):
    def decode(pictures, mode, device, swapped=False):
        found = []
        for each in pictures:
            split = cv2.cvtColor(cv2.imdecode(each.numpy(), cv2.IMREAD_COLOR), cv2.COLOR_BGR2YCrCb)
            split[:, :, 1:] = split[::2, ::2, 1:].repeat(2, 0).repeat(2, 1)
            image = cv2.cvtColor(split, cv2.COLOR_YCrCb2BGR if swapped else cv2.COLOR_YCrCb2RGB)
            found.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        return found

    monkeypatch.setattr(inputs, "rate", lambda *_: 1.0)
    bench, lines = small_bench(tmp_path)
    for swapped in (False, True):
        monkeypatch.setattr("torchvision.io.decode_jpeg", partial(decode, swapped=swapped))
        inputs.run(bench)
    right, wrong = (line for line in lines if line["case"] == "torchvision, decode only")
    assert right["ok"]
    assert right["noise_off_levels"] > 3, "or the picture of noise would do"
    assert not wrong["ok"]


def test_a_folder_whose_photos_cannot_be_read_is_no_set_of_photos(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    bench, _ = small_bench(tmp_path)
    bench.photos = tmp_path
    with pytest.raises(ValueError, match="none of its files can be read"):
        detector.pictures(bench)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((20, 30, 3), np.uint8))
    assert [photo.shape for photo in detector.pictures(bench)] == [(20, 30, 3)]


def test_a_published_figure_stands_beside_the_network_that_it_is_of():
    assert list(backbone.PUBLISHED) == ["iresnet50"]
    assert all("R50" in name for name in backbone.PUBLISHED["iresnet50"])
