"""`headcount prep align`: from photos to a set, as a user runs it."""

import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from data_prep.cli import app
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from tests.data.sets import encode, picture

GPU = torch.cuda.is_available()


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def folders(root, people: int = 3, each: int = 4, size: int = 112):
    for person in range(people):
        (root / f"person {person}").mkdir(parents=True)
        for number in range(each):
            (root / f"person {person}" / f"{number}.jpg").write_bytes(encode(picture(person * 100 + number, size)))
    return root


def test_aligned_pictures_are_moved_as_they_are_and_all_inputs_are_accounted_for(tmp_path):
    source = folders(tmp_path / "photos")
    (source / "person 1" / "again.jpg").write_bytes((source / "person 1" / "0.jpg").read_bytes())
    (source / "person 2" / "small.jpg").write_bytes(encode(picture(7, 64)))
    told = run("align", source, tmp_path / "set", "--keep", "--workers", 1)
    assert "12 pictures of 3 identities" in told
    assert "1 duplicate" in told
    assert "1 wrong size" in told
    assert load_manifest(tmp_path / "set").samples == 12
    assert pq.read_table(tmp_path / "set" / "rejects.parquet").num_rows == 2
    assert cv2.imread(str(tmp_path / "set" / "report.png")).std() > 10
    assert "12 pictures" in run("align", source, tmp_path / "set", "--keep"), "a second call changes nothing"
    assert "12 pictures" in run("resume", tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--thresholds", 2, 2, 2], "expected numbers between 0 and 1"),
        (["--thresholds", 0.6, 0.7, 0.7, "--min-score", 0.9], "give one of the two"),
        (["--detector", "net.onnx", "--thresholds", 0.6, 0.7, 0.7], "use --min-score"),
        (["--min-score", 0], "between 0 and 1"),
        pytest.param(["--device", "cuda"], "not available", marks=pytest.mark.skipif(GPU, reason="a GPU is there")),
        (["--device", "moon"], "not available"),
    ],
)
def test_options_of_the_detector_are_refused_before_the_job_is_planned(tmp_path, options, message):
    folders(tmp_path / "photos", people=1, each=1)
    with pytest.raises(UserError, match=message):
        run("align", tmp_path / "photos", tmp_path / "set", *options)
    assert not (tmp_path / "set").exists()


def test_photos_without_a_face_are_cropped_in_their_centre_or_dropped(tmp_path):
    photos = tmp_path / "photos" / "a"
    photos.mkdir(parents=True)
    for number in range(3):
        grey = np.full((120, 90, 3), 90 + 20 * number, dtype=np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), grey)
    run("align", tmp_path / "photos", tmp_path / "set", "--no-face", "centre", "--image-size", 64, "--workers", 1)
    manifest = load_manifest(tmp_path / "set")
    assert (manifest.samples, manifest.image_size) == (3, 64)


def test_a_table_names_photos_and_identities_in_columns_of_the_users(tmp_path):
    folders(tmp_path / "photos", people=2, each=2)
    lines = [f"photos/person {p}/{n}.jpg,{'bo' if p else 'al'}" for p in range(2) for n in range(2)]
    (tmp_path / "people.csv").write_text("\n".join(["file,who", *lines]) + "\n")
    columns = ("--path-column", "file", "--identity-column", "who")
    run("align", tmp_path / "people.csv", tmp_path / "set", "--keep", "--workers", 1, *columns)
    assert pq.read_table(tmp_path / "set" / "identities.parquet")["name"].to_pylist() == ["al", "bo"]
    with pytest.raises(UserError, match="path"):
        run("align", tmp_path / "people.csv", tmp_path / "set2", "--keep")


def test_other_options_on_the_same_output_are_refused_with_both_values(tmp_path):
    source = folders(tmp_path / "photos", people=2, each=2)
    run("align", source, tmp_path / "set", "--keep", "--workers", 1)
    with pytest.raises(UserError, match=r"min_images was 1, is 2; use another OUT"):
        run("align", source, tmp_path / "set", "--keep", "--min-images", 2)


@pytest.mark.parametrize("below", ["", "set"])
def test_an_output_that_is_the_source_or_lies_in_it_is_refused(tmp_path, below):
    source = folders(tmp_path / "photos", people=1, each=1)
    with pytest.raises(UserError, match=r"OUT .* is the source .*photos, or lies in it; use an OUT beside it"):
        run("align", source, source / below, "--keep", "--workers", 1)
    assert not list(source.rglob(".prep"))


def test_a_source_of_tars_is_not_written_over(tmp_path):
    run("align", folders(tmp_path / "photos", people=1, each=2), tmp_path / "set", "--keep", "--workers", 1)
    (tmp_path / "tars").mkdir()
    tar = (tmp_path / "set" / "x-000000.tar").rename(tmp_path / "tars" / "x-000000.tar")
    before = tar.read_bytes()
    for source, message in ((tar.parent, "is the source"), (tar, r"holds a shard already, x-000000\.tar, and no job")):
        with pytest.raises(UserError, match=message):
            run("align", source, tar.parent, "--keep", "--min-images", 9, "--workers", 1)
        assert {path: path.read_bytes() for path in tar.parent.iterdir()} == {tar: before}


def test_sources_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match="none: not there"):
        run("align", tmp_path / "none", tmp_path / "set")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt: of no known kind; expected a folder of identities, a \.rec"):
        run("align", tmp_path / "notes.txt", tmp_path / "set")


class TestWandb:
    """With a stand-in for its library, which takes seconds to start."""

    def test_figures_of_each_unit_and_the_report_go_to_a_run_of_the_sets_name(self, tmp_path, monkeypatch):
        logged, asked = [], {}

        class Run:
            log = staticmethod(logged.append)
            finish = staticmethod(lambda: logged.append("finished"))

        monkeypatch.setattr("wandb.init", lambda **options: asked.update(options) or Run())
        monkeypatch.setattr("wandb.Image", lambda path: path)
        source = folders(tmp_path / "photos", people=2, each=2)
        (source / "person 1" / "small.jpg").write_bytes(encode(picture(7, 64)))
        options = ("--keep", "--workers", 1, "--unit", 3, "--wandb", "offline")
        run("align", source, tmp_path / "set", *options)
        assert (asked["mode"], asked["name"], asked["dir"]) == ("offline", "set", tmp_path / "set")
        assert asked["config"]["source"]["path"] == str(source)
        units = [figures for figures in logged if "photos" in figures]
        assert [unit["photos"] for unit in units] in ([3, 5], [2, 5])
        assert (units[-1]["kept"], units[-1]["rejected"]) == (4, 1)
        assert units[-1]["photos_per_s"] > 0
        assert logged[-2:] == [{"report": str(tmp_path / "set" / "report.png")}, "finished"]

    def test_a_failing_wandb_does_not_fail_the_job(self, tmp_path, monkeypatch, caplog):
        def refuse(**_):
            raise RuntimeError("no key")

        monkeypatch.setattr("wandb.init", refuse)
        source = folders(tmp_path / "photos", people=1, each=2)
        told = run("align", source, tmp_path / "set", "--keep", "--workers", 1, "--wandb", "online")
        assert "2 pictures of 1 identities" in told
        assert "W&B could not start (no key); the job goes on without it" in caplog.text


def test_engines_say_what_they_miss(tmp_path, monkeypatch):
    source = folders(tmp_path / "photos", people=1, each=1)
    with pytest.raises(UserError, match="--engine slurm: say how many array tasks are wanted: --workers N"):
        run("align", source, tmp_path / "set", "--keep", "--engine", "slurm")
    with pytest.raises(UserError, match="--sbatch goes with --engine slurm"):
        run("align", source, tmp_path / "set", "--keep", "--sbatch", "partition=cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="is not on this machine; run this on a node from which Slurm is used"):
        run("align", source, tmp_path / "set", "--keep", "--engine", "slurm", "--workers", 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed; install it: pip install 'headcount\[ray\]'"):
        run("align", source, tmp_path / "set", "--keep", "--engine", "ray")
