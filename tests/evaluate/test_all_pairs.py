"""`headcount eval` on all pairs of a set, and on those of a list."""

import csv
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.data.manifest import Manifest
from dist_train.evaluate.all_pairs import evaluate_all_pairs, judge_all, listed_accuracy
from dist_train.evaluate.config import AllPairsConfig, EvaluateConfig
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.judging import Judging
from launch.cli import run
from tests.data.sets import encode, write_tar
from tests.evaluate.faces import write_role_set
from tests.evaluate.models import write_color_model
from tests.evaluate.pairs_problem import tied_rows
from tests.evaluate.simulated import collapsed
from tests.ranks import ranks_here, run_ranks
from tests.sets import picture

PEOPLE = ("Ann", "Bo van Ek", "Cy", "Dee", "Eve", "Flo")
VIEWS = 5


def write_people(directory, shard_samples=8, views=VIEWS):
    """Pictures of people whose samples say which photo they are from; one photo is rejected."""
    directory.mkdir()
    samples = [
        (label, view, f"lfw.tar:{name}/{name}_{view + 1:04d}.jpg")
        for view in range(views)
        for label, name in enumerate(PEOPLE)
    ]
    members = [
        [
            (f"{number:06d}.png", encode(picture(label, view, 16), ".png")),
            (f"{number:06d}.cls", b"%d" % label),
            (f"{number:06d}.json", json.dumps({"source": source}).encode()),
        ]
        for number, (label, view, source) in enumerate(samples)
    ]
    parts = [members[start : start + shard_samples] for start in range(0, len(members), shard_samples)]
    shards = [write_tar(directory / f"x-{number:06d}.tar", part) for number, part in enumerate(parts)]
    Manifest(16, len(PEOPLE), tuple(shards)).save(directory)
    rejected = {"source": ["lfw.tar:Ann/Ann_0099.jpg"], "reason": ["no face"], "detail": [""]}
    pq.write_table(pa.table(rejected), directory / "rejects.parquet")
    return directory


def write_list(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("left", "right", "same"), *rows])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    write_people(root / "faces")
    write_people(root / "singles", views=1)
    write_role_set(root / "heldout")
    write_color_model(root / "small.onnx", 16, seed=0)
    write_color_model(root / "other.onnx", 16, dim=2, seed=1)
    lines = [f"{name}\t1\t{view}" for name in PEOPLE for view in (2, 3)]
    lines += [f"{PEOPLE[n - 1]}\t{view}\t{PEOPLE[n]}\t2" for view in (1, 4) for n in range(len(PEOPLE))]
    (root / "pairs.txt").write_text("\n".join(["12", *lines]) + "\n")
    return root


@pytest.fixture
def evaluate(monkeypatch, capsys, place):
    """Call `headcount eval` in the folder of the sets: exit status, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headcount", "eval", *words])
        status = run()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_set_without_roles_is_judged_on_all_pairs_and_one_with_roles_as_before(evaluate, place):
    words = ["-s", "faces", "-s", "heldout", "--json", "all.json", "--report", "all.html"]
    status, out, err = evaluate("small.onnx", "other.onnx", *words)
    assert status == 0, err
    assert re.findall(r"^(\w.*)\n\w?.*\n-+ ", out, flags=re.MULTILINE) == ["Identification", "Operating points"]
    small, _ = json.loads((place / "all.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", small["model_sha256"])
    assert [each["set"] for each in small["identification"]] == ["heldout"]
    (found,) = small["all_pairs"]
    assert (found["set"], found["pictures"], found["identities"]) == ("faces", 30, 6)
    assert (found["genuine_pairs"], found["impostor_pairs"], found["searched"]) == (60, 375, 30)
    points = found["operating_points"]
    assert [point["fmr"] for point in points] == [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    assert [point["resolved"] for point in points] == [True, True, False, False, False, False]
    for point in points:
        assert point["measured_fmr"] <= point["fmr"]
        assert point["fnmr_95"][0] <= point["fnmr"] <= point["fnmr_95"][1]
    assert [point["fnmr"] for point in points] == sorted(point["fnmr"] for point in points)
    assert re.search(r"^faces · small +0\.01 ", out, flags=re.MULTILINE)
    assert re.search(r"^faces · small +0\.001 \* ", out, flags=re.MULTILINE)
    assert "* The set has fewer than 3 / FMR pairs of different identities" in out
    page = (place / "all.html").read_text()
    assert "Operating points: faces" in page
    assert "Scores: faces · other" in page


def test_the_pairs_of_a_list_are_found_by_key_or_source_and_judged_alone(evaluate, place):
    status, _, err = evaluate("small.onnx", "-s", "faces", "--pairs", "pairs.txt", "--json", "lfw.json")
    assert status == 0, err
    (found,) = json.loads((place / "lfw.json").read_text())[0]["all_pairs"]
    assert (found["set"], found["genuine_pairs"], found["impostor_pairs"]) == ("faces by pairs.txt", 12, 12)
    assert (found["rank1"], found["notes"]) == (None, [])
    assert found["accuracy"] is not None
    rows = [("000000", "000006", 1), ("000000", "000001", 0), ("000001", "000000", 0)]
    rows += [("Ann/Ann_0001.jpg", "Ann/Ann_0003", 1), ("000002", "Ann/Ann_0099.jpg", 0), ("000002", "000003", 1)]
    write_list(place / "mixed.csv", rows)
    status, _, err = evaluate("small.onnx", "-s", "faces", "--pairs", "mixed.csv", "--json", "mixed.json")
    assert status == 0, err
    (found,) = json.loads((place / "mixed.json").read_text())[0]["all_pairs"]
    assert (found["genuine_pairs"], found["impostor_pairs"], found["pictures"]) == (3, 1, 6)
    assert found["notes"] == [
        "1 pairs are left out, whose photos have no picture in the set: 1 no face",
        "1 pairs are in the list more than once, and count once",
        "the set's labels say otherwise than the list for 1 of its pairs; the list counts",
    ]


def test_the_accuracy_of_a_list_is_that_of_its_ten_folds():
    same = np.tile([True, False], 30)
    scores = np.where(same, 0.8, 0.2).astype(np.float32)
    scores[[0, 20, 21]] = 0.2, 0.2, 0.8  # three errors in two folds of six pairs
    assert listed_accuracy(scores, same)[0] == pytest.approx(1 - 3 / 60)
    assert listed_accuracy(scores, np.repeat([True, False], 30)) is None  # a fold of one kind


def test_each_mistake_ends_with_its_status_and_names_it(evaluate, place):
    for name, rows in {
        "stranger.csv": [("000000", "000006", 1), ("000000", "Zoe/Zoe_0001.jpg", 0)],
        "both.csv": [("000000", "000006", 1), ("000006", "000000", 0)],
        "same.csv": [("000000", "000006", 1)],
        "itself.csv": [("000000", "Ann/Ann_0001.jpg", 1)],
    }.items():
        write_list(place / name, rows)
    write_color_model(place / "nan.onnx", 16, scale=np.nan)
    for words, expected, message in (
        (["-s", "singles"], 2, "set singles: 6 pictures with a label, of 6 identities, one each; all pairs need"),
        (
            ["-s", "faces", "--pairs", "stranger.csv"],
            2,
            r"stranger.csv: 1 of its 3 pictures are not in set faces, .*: 'Zoe/Zoe_0001.jpg'; list and set do not",
        ),
        (["-s", "faces", "--pairs", "both.csv"], 2, "both.csv: '000006' and '000000' are a pair of one identity and,"),
        (["-s", "faces", "--pairs", "same.csv"], 2, "same.csv: no pair of two identities with pictures in faces"),
        (
            ["-s", "faces", "--pairs", "itself.csv"],
            2,
            "'Ann/Ann_0001.jpg' are one picture of the set, paired with itself",
        ),
        (["-s", "faces", "--pairs", "none.txt"], 2, "none.txt: No such file"),
        (["-s", "faces", "--pairs", "pairs.txt", "--distractors", "heldout"], 2, "pairs.txt beside --distractors"),
        (["--knn", "faces", "--pairs", "pairs.txt"], 2, "pairs.txt without a directory of shards in --sets"),
        (["-s", "faces", "--all-pairs", "faces"], 2, "two entries are both called 'faces' in figures; rename"),
        (["-s", "faces", "--all-pairs", "other/faces"], 2, "two entries are both called 'faces' in figures"),
        (["-s", "faces", "--by", ""], 2, "by is '': string should have at least 1 character"),
        (["-s", "faces", "--quality", ""], 2, "by is '': string should have at least 1 character"),
        (["-s", "none"], 2, "none"),
    ):
        status, _, err = evaluate("small.onnx", *words)
        assert status == expected, (words, err)
        assert re.search(message, err), (words, err)
        assert err.count("\n") == 1, (words, err)
    status, _, err = evaluate("nan.onnx", "-s", "faces")
    assert (status, "embedding of picture 0 is not finite" in err) == (1, True)


def summaries(rank, world_size, root):
    """The figures of both kinds of entries."""
    how = Judging(lambda images: images.mean(dim=(2, 3)) + 2, 16, 4, ranks_here(rank, world_size), flip=False)
    entries = [AllPairsConfig(set=root / "faces"), AllPairsConfig(set=root / "faces", pairs=root / "pairs.txt")]
    return [evaluate_all_pairs(entry, how).summary() for entry in entries]


def test_three_ranks_get_what_one_gets(place):
    alone = summaries(0, 1, place)
    assert run_ranks(3, summaries, place) == [alone] * 3


def test_pictures_without_a_label_and_roles_are_counted_in_notes():
    features, labels = tied_rows(40, 6)
    labels[:3] = -1
    roles = ["probe"] * 5 + [None] * 35
    embedded = EmbeddedSet("made", "made", features, torch.ones(40), labels, [""] * 40, roles)
    found = judge_all(embedded, "made")
    assert found.pictures == 37
    assert found.notes == (
        "3 pictures have no label, and are left out",
        "5 pictures have a role in their .json, which is not looked at: all pairs count",
    )


@pytest.mark.parametrize("seed", range(2))
def test_rounding_gives_a_model_of_one_embedding_no_credit(seed):
    count = 2500  # two blocks of a side, of which one is smaller
    labels = torch.arange(count) // 2
    embedded = EmbeddedSet("one", "one", collapsed(count, seed=seed), torch.ones(count), labels, [""], [None] * count)
    found = judge_all(embedded, "one")
    assert (found.rank1, found.rank5, {point.fnmr for point in found.points}) == (0, 0, {1})


def test_a_recipe_names_a_set_by_its_path_or_with_a_list(tmp_path):
    found = EvaluateConfig(all_pairs=[str(tmp_path / "a"), {"set": tmp_path / "a", "pairs": tmp_path / "b.csv"}])
    assert [(entry.set.name, entry.pairs) for entry in found.all_pairs] == [("a", None), ("a", tmp_path / "b.csv")]
    with pytest.raises(ValueError, match="two entries are both called 'a' in figures"):
        EvaluateConfig(all_pairs=[tmp_path / "a", tmp_path / "b" / "a"])
