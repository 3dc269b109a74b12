"""The benchmark that waits for a GPU: on the CPU at small sizes, and with parts that end their process."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_parts.parts import PARTS, share_s

SCRIPT = Path(gpu.__file__)


@pytest.mark.job
def test_parts_give_results_on_a_cpu_and_name_what_they_lack(tmp_path):
    out = tmp_path / "out" / "gpu.jsonl"
    parts = set(PARTS) - {"head-correct", "storage"}  # half of the time, and what tests/head and its stores show
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
        (["--minutes", "0"], "--minutes: 0.0, expected more than 0"),
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
