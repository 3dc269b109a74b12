"""`headcount data cluster`: embedded pictures become a set whose identities are clusters."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data_prep.cluster.job import ByGraph, ByKMeans, cluster_set, parts_of
from dist_train.cluster import graph
from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import load_manifest
from dist_train.data.verify import verify_shard
from dist_train.embed.pictures import Picture, Place
from dist_train.embed.table import embedding_schema, embedding_table, with_description
from dist_train.errors import UserError, WorkError
from dist_train.runtime.lock import only_job
from launch.cli import app
from launch.embed.crops import Centre
from launch.embed.open import open_origin
from launch.embed.photos import Photos
from tests.cluster.simulated import unit
from tests.data.sets import encode, make_set, picture
from tests.data.tars import tar_of
from tests.embed.standin import SIZE, Numbers, embed
from tests.prep.merging import identities, members
from tests.ranks import ranks_here, run_ranks

PEOPLE = [0, 1, 0, 2, 1, 0, 3, 1, 0, 1]  # whom picture n shows; 2 and 3 are shown once


def cluster(*arguments):
    result = CliRunner().invoke(app, ["data", "cluster", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def vectors(people=PEOPLE):
    noise = np.random.default_rng(0).normal(0, 0.05, (len(people), 6))
    return (3 * (np.eye(6)[people] + noise)).astype(np.float32)


def embedded(path: Path, folder: Path, features: np.ndarray, **source: object) -> Path:
    """A file as `headcount embed` writes it, of the first pictures of a set."""
    rows = []
    for shard in load_manifest(folder).shards:
        for line in (folder / shard.name).with_suffix(".idx").read_text().splitlines()[1:]:
            _, offset, size, name = line.split()[:4]
            rows.append(Place(f"{shard.name}:{name}", int(offset), int(size)))
    rows = rows[: len(features)]
    nothing = Picture(np.empty((0, 0, 3), np.uint8))
    table = embedding_table(rows, [nothing] * len(rows), np.ones(len(rows), np.float32), features)
    description = {
        "version": 1,
        "model": {"name": "standin", "sha256": "a" * 64},
        "embedding_dim": features.shape[1],
        "image_size": 32,
        "flip": True,
        "source": {"kind": "Shards", "path": str(folder), "label_key": "label", **source},
    }
    schema = with_description(embedding_schema(features.shape[1]), description)
    pq.write_table(table.cast(schema), path)
    return path


@pytest.fixture
def given(tmp_path):
    """A set of ten pictures of `PEOPLE` in two shards, whose labels say nothing, and embeddings of it."""
    make_set(tmp_path / "set", [6, 4], 1, records=True)
    return embedded(tmp_path / "e.parquet", tmp_path / "set", vectors())


def test_clusters_become_the_identities_of_a_set_whose_pictures_keep_their_bytes(tmp_path, given):
    told = cluster(given, tmp_path / "out", "--threshold", "0.7")
    assert f"{tmp_path / 'out'}: 8 pictures in 2 clusters of 4 to 4 pictures each, median 4" in told
    assert "left out: 2 in clusters of fewer than 2" in told
    assert identities(tmp_path / "out") == [(0, "cluster-000001", 4), (1, "cluster-000002", 4)]
    before, after = members(tmp_path / "set"), members(tmp_path / "out")
    stay = {f"{n:08d}": person for n, person in enumerate(PEOPLE) if person < 2}
    assert {name for name in after if name.endswith(".cls")} == {f"{key}.cls" for key in stay}
    for key, person in stay.items():
        assert after[f"{key}.jpg"] == before[f"{key}.jpg"]
        assert after[f"{key}.cls"] == b"%d" % person
        assert after[f"{key}.json"] == before[f"{key}.json"]
    manifest = load_manifest(tmp_path / "out")
    assert [
        list(verify_shard(tmp_path / "out", manifest, shard, True, "label").problems) for shard in manifest.shards
    ] == [[], []]
    table = pq.read_table(tmp_path / "out" / "clusters.parquet")
    assert table["cluster"].to_pylist() == [0, 1, 0, None, 1, 0, None, 1, 0, 1]
    assert table["key"][0].as_py() == "x-000000.tar:00000000.jpg"
    rows = unit(vectors().astype(np.float64))
    own = [n for n, person in enumerate(PEOPLE) if person == 0]
    center = unit(rows[own].sum(axis=0, keepdims=True))[0]
    assert np.allclose(table["cosine"].to_numpy()[own], rows[own] @ center, atol=1e-6)


def test_what_embed_writes_of_plain_tars_without_labels_is_clustered_and_trained_on(tmp_path):
    samples = []
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 8, (32, 32, 3), dtype=np.uint8)
        pixels[:, :, number % 2] += 200
        samples.append((f"{number:04d}.jpg", encode(pixels)))
    samples += [("0016.jpg", encode(picture(0))), ("0016.png", encode(picture(0), ".png"))]  # two of one key
    tar_of(tmp_path / "tars" / "a.tar", samples)
    embed(tmp_path / "e.npy", Photos(open_origin(tmp_path / "tars"), Centre(SIZE)))
    told = cluster(tmp_path / "e.npy", tmp_path / "out", "--threshold", "0.98")
    assert "16 pictures in 2 clusters of 8 to 8 pictures each" in told
    assert "left out: 2 that training cannot use" in told
    assert load_manifest(tmp_path / "out").image_size == 32
    with build_loader(DataConfig(path=str(tmp_path / "out"), workers=0), 16, 0, 1, 0) as loader:
        batch = next(loader)
        assert sorted(batch.labels.tolist()) == [0] * 8 + [1] * 8


def test_kmeans_makes_as_many_clusters_as_it_is_told_and_gives_pictures_several_labels(tmp_path, given):
    told = cluster(given, tmp_path / "out", "--method", "kmeans", "--clusters", 4, "--labels", 3, "--min-size", 1)
    assert "10 pictures in 4 clusters" in told
    files = members(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "clusters.parquet")["cluster"].to_pylist()
    for number, label in enumerate(table):
        record = json.loads(files[f"{number:08d}.json"])
        assert record["labels"][0] == label == int(files[f"{number:08d}.cls"])
        assert len({*record["labels"]}) == 3
        assert (record["number"], record["role"]) == (number, "probe")


def figures(folder: Path, sha256: str = "a" * 64) -> Path:
    """What `headcount eval --json` writes of a model."""
    points = [
        {
            "fmr": fmr,
            "threshold": threshold,
            "measured_fmr": fmr,
            "fnmr": 0.1,
            "fnmr_95": [0, 0.2],
            "resolved": fmr > 1e-4,
        }
        for fmr, threshold in ((1e-3, 0.2), (1e-4, 0.7))
    ]
    people = {"set": "people", "pictures": 9, "identities": 3, "genuine_pairs": 9, "impostor_pairs": 27}
    body = {
        "model": "standin",
        "model_sha256": sha256,
        "all_pairs": [people | {"operating_points": points, "notes": []}],
    }
    (folder / "eval.json").write_text(json.dumps([body]))
    return folder / "eval.json"


def test_the_threshold_of_a_calibration_of_the_same_model_is_taken(tmp_path, given, caplog):
    assert "8 pictures in 2 clusters" in cluster(given, tmp_path / "out", "--calibration", figures(tmp_path))
    assert "too few pairs of different people to measure a rate of 0.0001" in caplog.text
    with pytest.raises(UserError, match=r"measured for it on people; there is one for 0\.001, 0\.0001"):
        cluster(given, tmp_path / "out 2", "--calibration", figures(tmp_path), "--fmr", "1e-5")
    with pytest.raises(UserError, match="a threshold holds for the model it was measured with"):
        cluster(given, tmp_path / "out 2", "--calibration", figures(tmp_path, "b" * 64))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "needs either --threshold or --calibration"),
        (["--threshold", "1.5"], "threshold 1.5: expected a cosine between 0 and 1"),
        (["--threshold", "nan"], "threshold nan: expected a cosine between 0 and 1"),
        (["--threshold", "0.7", "--labels", "2"], "--method graph takes neither --clusters nor --labels"),
        (["--threshold", "0.7", "--min-size", "5"], "no cluster has 5 pictures among 10; lower the threshold"),
        (["--threshold", "0.7", "--set", "/gone"], "set /gone: not there any more; correct --set"),
        (["--method", "kmeans"], "kmeans needs --clusters"),
        (["--method", "kmeans", "--clusters", "4", "--threshold", "0.7"], "takes neither --threshold"),
        (["--method", "kmeans", "--clusters", "11"], "10 pictures, 11 clusters"),
        (["--threshold", "0.7", "--device", "tpu"], "expected auto, cpu or cuda"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, given, options, reason):
    with pytest.raises(UserError, match=reason):
        cluster(given, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "what"), [(np.nan, "not finite"), (0, "zero")])
def test_an_embedding_that_is_not_a_direction_is_refused_by_its_row(tmp_path, value, what):
    make_set(tmp_path / "set", [6, 4], 1)
    features = vectors()
    features[7] = value
    given = embedded(tmp_path / "e.parquet", tmp_path / "set", features)
    with pytest.raises(UserError, match=rf"e\.parquet: row 7, x-000001\.tar:00000007\.jpg: its embedding is {what}"):
        cluster_set(given, tmp_path / "out", ByGraph(0.7), quiet=True)


def test_an_output_that_holds_something_or_lies_in_the_set_is_refused(tmp_path, given):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(UserError, match="full: holds something already"):
        cluster_set(given, tmp_path / "full", ByGraph(0.7), quiet=True)
    for out in (tmp_path / "set", tmp_path / "set" / "clusters", tmp_path):
        with pytest.raises(UserError, match=r"set .* itself|lie in one another"):
            cluster_set(given, out, ByGraph(0.7), quiet=True)
    assert (tmp_path / "full" / "notes").read_text() == "mine"


def test_a_set_that_has_changed_since_it_was_embedded_is_refused(tmp_path, given):
    make_set(tmp_path / "fewer", [6, 3], 1, records=True)
    with pytest.raises(UserError, match=r"1 of 10 pictures are not where they were in .*fewer, e\.g\. row 9 at byte"):
        cluster_set(given, tmp_path / "out", ByGraph(0.7), given=tmp_path / "fewer", quiet=True)
    tar = tmp_path / "set" / "x-000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(WorkError, match=r"x-000001\.tar: sha256 .*, the manifest says"):
        cluster_set(given, tmp_path / "out", ByGraph(0.7), quiet=True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.parts"], "the search is kept"


def test_pictures_that_were_cut_while_they_were_embedded_and_files_outside_of_tars_are_refused(tmp_path, given):
    cut = embedded(tmp_path / "cut.parquet", tmp_path / "set", vectors(), align={"face": "main"})
    with pytest.raises(UserError, match="faces were found and aligned while they were embedded"):
        cluster_set(cut, tmp_path / "out", ByGraph(0.7), quiet=True)
    embed(tmp_path / "numbers.parquet", Numbers(path=str(tmp_path / "set")))
    with pytest.raises(UserError, match=r"row 0, pictures/000: expected pictures of a set of shards"):
        cluster_set(tmp_path / "numbers.parquet", tmp_path / "out", ByGraph(0.7), quiet=True)


def test_samples_without_an_embedding_are_counted(tmp_path, given):
    fewer = embedded(tmp_path / "fewer.parquet", tmp_path / "set", vectors(PEOPLE[:9]))
    done = cluster_set(fewer, tmp_path / "out", ByGraph(0.7), quiet=True)
    assert (done.not_embedded, done.small, done.unusable) == (1, 2, 0)


def test_a_second_job_on_an_output_is_refused_and_one_that_is_refused_leaves_nothing(tmp_path, given):
    out = tmp_path / "out"
    parts_of(out).mkdir()
    with (
        only_job(parts_of(out) / "lock", out),
        pytest.raises(UserError, match=rf"out: another job is working on it \(process {os.getpid()} on "),
    ):
        cluster_set(given, out, ByGraph(0.7), quiet=True)
    with pytest.raises(UserError, match="10 pictures, 11 clusters"):
        cluster_set(given, out, ByKMeans(11), quiet=True)
    assert not parts_of(out).exists()
    assert cluster_set(given, out, ByKMeans(3), quiet=True).written.manifest.num_classes == 3
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
import dist_train.cluster.graph as graph
import data_prep.cluster.write as write
from data_prep.cluster.job import ByGraph, cluster_set

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

graph.QUERY_BLOCK = 4
place, given, out = sys.argv[1:]
if place == "search":
    blocks, near = iter(range(2)), graph.near_rows
    graph.near_rows = lambda *asked: die() if next(blocks, None) is None else near(*asked)
else:
    add = write._Writing.add
    write._Writing.add = lambda self, tar, number, bar: die() if number else add(self, tar, number, bar)
cluster_set(Path(given), Path(out), ByGraph(0.7), quiet=True)
"""


@pytest.mark.job
@pytest.mark.parametrize("place", ["search", "write"])
def test_a_job_that_is_killed_goes_on_with_the_next_block_and_gives_the_same_set(tmp_path, given, place, monkeypatch):
    out, asked = tmp_path / "out", []
    killed = subprocess.run([sys.executable, "-c", KILLED, place, str(given), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    blocks = sorted(parts_of(out).glob("*/*.npz"))
    assert len(blocks) == (2 if place == "search" else 3)
    near = graph.near_rows
    monkeypatch.setattr(graph, "QUERY_BLOCK", 4)
    monkeypatch.setattr(graph, "near_rows", lambda some, *rest: asked.append(len(some)) or near(some, *rest))
    cluster_set(given, out, ByGraph(0.7), quiet=True)
    assert asked[: len(asked) - 1] == ([2] if place == "search" else []), "the last search is that of the clusters"
    cluster_set(given, tmp_path / "whole", ByGraph(0.7), quiet=True)
    assert members(out) == members(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out."))]


def on_ranks(rank, world_size, home):
    given, ranks = home / "e.parquet", ranks_here(rank, world_size)
    made = []
    for name, how in (("graph", ByGraph(0.7)), ("kmeans", ByKMeans(3))):
        made.append(cluster_set(given, home / f"{name} {world_size}", how, ranks=ranks, quiet=True))
    return [None if done is None else done.written.counts.tolist() for done in made]


def test_two_ranks_make_the_same_set_as_one(tmp_path, given):
    alone = on_ranks(0, 1, tmp_path)
    assert run_ranks(2, on_ranks, tmp_path) == [alone, [None, None]]
    for name in ("graph", "kmeans"):
        assert members(tmp_path / f"{name} 1") == members(tmp_path / f"{name} 2")
