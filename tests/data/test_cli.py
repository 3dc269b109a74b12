"""`headcount data`: what a user sees of a set."""

import json

import cv2
import pytest
from typer.testing import CliRunner

from dist_train.data.cli import app
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from tests.data.sets import make_set


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_inspect_counts_and_draws(tmp_path):
    make_set(tmp_path / "set", [20, 13], num_classes=5)
    told = run("inspect", tmp_path / "set", "--sheet", tmp_path / "sheet.png", "--rows", 2, "--columns", 3)
    assert "33" in told
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[0] >= 64


@pytest.mark.job
def test_verify_finds_each_kind_of_damage_and_says_where(tmp_path):
    make_set(tmp_path, [10, 10, 10, 10])
    assert "40 images in 4 shards, all as the manifest says" in run("verify", tmp_path, "--workers", 1)
    flipped = tmp_path / "x-000001.tar"
    data = bytearray(flipped.read_bytes())
    data[700] ^= 255
    flipped.write_bytes(data)
    (tmp_path / "x-000002.tar").unlink()
    cut = tmp_path / "x-000003.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--workers", "2"])
    assert isinstance(result.exception, WorkError)
    for number in (1, 2, 3):
        assert f"x-{number:06d}.tar" in result.output
    assert "x-000000.tar" not in result.output


@pytest.mark.job
def test_bench_prints_a_rate_for_every_way(tmp_path):
    make_set(tmp_path, [40])
    told = run("bench", tmp_path, "--workers", 0, "--workers", 1, "--batch-size", 8, "--seconds", 0.3)
    rows = [line.rsplit(maxsplit=3) for line in told.splitlines()[1:]]
    ways = [(name, int(workers)) for name, workers, _, _ in rows]
    assert ways[:3] == [("decode only", 0), ("opencv", 0), ("opencv", 1)]
    assert all(float(rate.replace(",", "")) > 0 for _, _, rate, _ in rows)


def test_bench_refuses_a_batch_larger_than_the_set_and_a_missing_set(tmp_path):
    make_set(tmp_path / "set", [10])
    with pytest.raises(UserError, match="10 samples, fewer than --batch-size 256"):
        run("bench", tmp_path / "set")
    with pytest.raises(UserError, match="no such directory"):
        run("bench", tmp_path / "none")


def test_a_manifest_of_another_version_is_refused(tmp_path):
    make_set(tmp_path, [4])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(UserError, match="99"):
        load_manifest(tmp_path)
