"""The images' recipes, as far as they can be checked without building them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
PACKAGES = ("data_prep", "dist_train", "launch")
LINTER = Path(sys.executable).with_name("hadolint")


def instructions(path):
    """Pairs of keyword and the rest, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint is not installed")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_the_linter_finds_nothing(path):
    done = subprocess.run([LINTER, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_images_are_pinned_and_run_as_a_user_that_is_not_root(path):
    found = instructions(path)
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", dict(found)["FROM"])
    users = [rest for name, rest in found if name == "USER"]
    assert users, "no USER"
    assert users[-1].isdigit(), "only a number can be checked by a cluster that refuses root"
    assert int(users[-1]) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_what_images_copy_is_there_and_nothing_else_is_sent(path):
    copied = set()
    for name, rest in instructions(path):
        if name == "COPY":
            copied |= {word for word in rest.split()[:-1] if not word.startswith("--")}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_package_that_images_install_holds_every_file_of_the_sources(tmp_path):
    sources = tmp_path / "sources"
    wanted = set()
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, sources / package, ignore=ignored)
        for folder, _, names in os.walk(sources / package):
            wanted |= {str((Path(folder) / name).relative_to(sources)) for name in names}
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, sources / name)
    build = "from setuptools import setup; setup(script_args=['-q', 'build_py', '--build-lib', 'built'])"
    done = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = sources / "built"
    assert {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()} == wanted
