"""What works without the optional packages, and what commands say that need one."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

from dist_train.data.addresses import read_address
from dist_train.errors import UserError
from dist_train.runtime.extras import EXTRAS
from tests.launch import without
from tests.launch.recipes import headcount_forked, write_recipe
from tests.sets import write_set

ROOT = Path(__file__).parents[2]
ALL = ",".join(sorted({module for modules in EXTRAS.values() for module in modules}))


def headcount_without(hidden, *arguments):
    return headcount_forked(hidden, *arguments, main=without.run)


def refused(done, extra):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"pip install 'headcount[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_trains_resumes_and_ends_without_any_extra(tmp_path):
    write_set(tmp_path / "set")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run", checkpoint__every_steps=1)
    first = headcount_without(ALL, "train", recipe, "train.steps=2")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    assert first.stderr.count("pip install 'headcount[report]'") == 1
    more = headcount_without(ALL, "train", recipe, "train.steps=4", "--resume", "--allow-changes")
    assert more.returncode == 0, more.stderr
    assert '"steps": 4' in more.stderr


def test_a_recipe_that_exports_is_refused_before_anything_is_written(tmp_path):
    write_set(tmp_path / "set")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run", export__onnx=True)
    done = headcount_without("onnxscript", "train", recipe)
    assert done.returncode == 2
    assert "export.onnx: needs onnxscript, not installed here" in done.stderr
    assert "pip install 'headcount[export]'" in done.stderr
    assert "export.onnx=false" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hidden", "extra", "arguments"),
    [
        ("onnx", "export", ["export", "nowhere"]),
        ("onnxruntime", "export", ["eval", "{here}/some.onnx", "-s", "{here}/some.bin"]),
        ("matplotlib", "report", ["eval", "nowhere", "-s", "some.bin", "--report", "some.html"]),
        ("matplotlib", "report", ["search", "query", "gallery", "who.jpg", "--model", "runs/faces"]),
        ("fontTools", "glyphs", ["prep", "glyphs", "{here}/set"]),
        ("onnx", "export", ["prep", "train-detector", str(ROOT / "configs" / "detector_drawn.yaml"), "--onnx"]),
    ],
)
def test_a_command_that_needs_an_extra_names_it(tmp_path, hidden, extra, arguments):
    (tmp_path / "some.onnx").write_bytes(b"model")
    (tmp_path / "some.bin").write_bytes(b"set")
    refused(headcount_without(hidden, *(each.format(here=tmp_path) for each in arguments)), extra)


def test_a_detector_is_trained_without_any_extra(tmp_path):
    recipe = ROOT / "configs" / "detector_drawn.yaml"
    done = headcount_without(ALL, "prep", "train-detector", recipe, f"sets=[{tmp_path}/none]", f"out={tmp_path}/out")
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}/none" in done.stderr


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_an_address_whose_library_is_missing_names_its_extra(monkeypatch, scheme, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^{scheme}://bucket/set/manifest.json: .*headcount\[{extra}\]"):
        read_address(f"{scheme}://bucket/set/manifest.json", 1000, 5.0)


def test_the_extras_that_messages_name_are_those_of_the_distribution():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - {"all", "dev"}
    assert declared["all"] == [f"headcount[{','.join(EXTRAS)}]"]
    for extra, modules in EXTRAS.items():
        packages = {package.partition(">")[0].partition("[")[0] for package in declared[extra]}
        # faiss is built by several: the one for processors is faiss-cpu.
        assert packages == {{"faiss": "faiss-cpu"}.get(module, module.lower().replace("_", "-")) for module in modules}
