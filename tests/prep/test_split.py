"""`headcount prep split`: identities are held out, with a gallery, probes and pairs."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.split import job, part
from dist_train.data.aligner import Aligner
from dist_train.data.foreign import write_index
from dist_train.data.manifest import Manifest, Shard, load_manifest
from dist_train.data.verify import verify_shard
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.sets import RoleSet
from dist_train.evaluate.verification import fold_bounds
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.written import write_json
from tests.data.tars import tar_of
from tests.prep.merging import content, identities, jpeg, made, members, pictures

pytestmark = pytest.mark.job  # whole jobs in the test's own process


def split(*arguments: object) -> str:
    """What the command prints, without processes of its own."""
    result = CliRunner().invoke(app, ["split", *map(str, arguments), "--workers", "1"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def every_file(out: Path) -> dict[str, bytes]:
    """What a user sees of a split, by name."""
    parts = {f"{name}/{file}": data for name in ("train", "heldout") for file, data in content(out / name).items()}
    return parts | content(out)


def records(folder: Path) -> dict[str, dict]:
    """The `.json` of every sample, by key."""
    return {name[:-5]: json.loads(data) for name, data in members(folder).items() if name.endswith(".json")}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A set of 24 people with three pictures and one with a single one, and two fifths of it held out."""
    folder = tmp_path_factory.mktemp("given")
    made(folder / "set", [f"person {number}" for number in range(24)], shards=3)
    told = split(folder / "set", folder / "out", "--identities", "40%")
    return folder, told


def test_no_identity_and_no_picture_is_in_both_parts_and_none_is_lost(given):
    folder, told = given
    train, heldout = pictures(folder / "out" / "train"), pictures(folder / "out" / "heldout")
    assert not set(train.values()) & set(heldout.values())
    assert not train.keys() & heldout.keys()
    assert train | heldout == pictures(folder / "set"), "the same bytes, of the same people"
    assert len(set(heldout.values())) == 10
    for name, people in (("train", 14), ("heldout", 10)):
        found = identities(folder / "out" / name)
        assert [label for label, _, _ in found] == list(range(people))
        assert {count for _, _, count in found} == {3}
        manifest = load_manifest(folder / "out" / name)
        verdicts = [verify_shard(folder / "out" / name, manifest, each, True, "label") for each in manifest.shards]
        assert [problem for verdict in verdicts for problem in verdict.problems] == []
    assert "train: 42 pictures of 14 identities" in told
    assert "heldout: 30 pictures of 10 identities, 10 in the gallery, 20 probes" in told


def test_both_parts_tell_what_aligned_the_faces_of_the_set(given, tmp_path):
    aligner = Aligner("scrfd", "b" * 64)
    manifest = replace(load_manifest(given[0] / "set"), aligner=aligner)
    shutil.copytree(given[0] / "set", tmp_path / "set")
    manifest.save(tmp_path / "set")
    split(tmp_path / "set", tmp_path / "out", "--identities", "40%")
    assert {load_manifest(tmp_path / "out" / part).aligner for part in ("train", "heldout")} == {aligner}


def test_each_held_out_identity_has_one_picture_in_the_gallery(given):
    folder, _ = given
    with RoleSet(folder / "out" / "heldout") as stored:
        assert sorted(stored.labels[stored.is_gallery].tolist()) == list(range(10))
    assert records(folder / "out" / "train") == {}


def test_the_verification_set_pairs_held_out_pictures_each_pair_once(given):
    folder, told = given
    whom = pictures(folder / "out" / "heldout")
    found = read_bin(folder / "out" / "verification.bin")
    pairs = list(zip(found.images[::2], found.images[1::2], strict=True))
    assert [whom[a] == whom[b] for a, b in pairs] == found.same.tolist()
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 60
    bounds = fold_bounds(len(pairs))
    assert {int(found.same[a:b].sum()) for a, b in itertools.pairwise(bounds)} == {3}
    assert "60 pairs, half of them of one identity; folds share identities" in told
    assert "6,000 pairs were asked for" in told


def test_folds_have_identities_of_their_own_where_there_are_twenty(given, tmp_path):
    told = split(given[0] / "set", tmp_path / "out", "--identities", 21, "--pairs", 40)
    assert "40 pairs, half of them of one identity; no identity is in two of the ten folds" in told
    whom = pictures(tmp_path / "out" / "heldout")
    found = [whom[image] for image in read_bin(tmp_path / "out" / "verification.bin").images]
    folds = [set(found[start : start + 8]) for start in range(0, 80, 8)]
    assert sum(map(len, folds)) == len(set().union(*folds))


def test_the_same_set_and_seed_give_the_same_bytes_and_another_seed_other_people(given, tmp_path):
    folder, told = given
    assert (
        split(folder / "set", tmp_path / "again", "--identities", "40%").replace(
            str(tmp_path / "again"), str(folder / "out")
        )
        == told
    )
    assert every_file(tmp_path / "again") == every_file(folder / "out")
    split(folder / "set", tmp_path / "other", "--identities", "40%", "--seed", 1)
    whom = [set(pictures(out / "heldout").values()) for out in (folder / "out", tmp_path / "other")]
    assert whom[0] != whom[1]
    split(folder / "set", tmp_path / "more", "--identities", 12)
    assert whom[0] < set(pictures(tmp_path / "more" / "heldout").values()), "a larger part holds a smaller one"


def dealt_otherwise(folder: Path, out: Path) -> None:
    """The set in `folder` as one tar, backwards and with its labels backwards, without an identities' table."""
    found = members(folder)
    files = []
    for name in sorted((name for name in found if name.endswith(".jpg")), reverse=True):
        label = 23 - int(found[f"{name[:-4]}.cls"])
        files += [(name, found[name]), (f"{name[:-4]}.cls", b"%d" % label)]
    tar_of(out / "all.tar", files)


def test_neither_the_shards_nor_the_labels_matter_where_identities_have_names(given, tmp_path):
    folder, _ = given
    dealt_otherwise(folder / "set", tmp_path / "set")
    names = pq.read_table(folder / "set" / "identities.parquet")
    labels = names.column("label").to_numpy()
    pq.write_table(names.set_column(0, "label", [23 - labels]), tmp_path / "set" / "identities.parquet")
    split(tmp_path / "set", tmp_path / "out", "--identities", "40%")
    assert pictures(tmp_path / "out" / "heldout") == pictures(folder / "out" / "heldout")
    roles = [records(out / "out" / "heldout") for out in (folder, tmp_path)]
    assert roles[0] == roles[1]
    pairs = [read_bin(out / "out" / "verification.bin") for out in (folder, tmp_path)]
    people = [{frozenset(pair) for pair in zip(each.images[::2], each.images[1::2], strict=True)} for each in pairs]
    assert people[0] == people[1]


def foreign(folder: Path, taken: list[object], each: int = 2) -> Path:
    """Tars as another tool writes them: keys in folders and twice over tars, no index, labels in `.json`."""
    for number, time in enumerate(taken):
        record = {"label": number % (len(taken) // each), "taken": time, "camera": "Žižkov"}
        if time is None:
            del record["taken"]
        key = f"cam/{number:03d}.front"
        tar_of(folder / f"part-{number}.tar", [
            (f"{key}.webp.jpg", jpeg(number)), (f"{key.split('.')[0]}.json", json.dumps(record).encode()),
            (f"{key.split('.')[0]}.npy", b"\x93NUMPY%d" % number),
        ])  # fmt: skip
    return folder


def test_tars_of_another_tool_are_parted_by_time_with_all_that_their_samples_carry(tmp_path):
    dates = ["2024-03-01", "2023-12-31T23:59:59+01:00", "2024-01-01T00:00:00Z"]
    source = foreign(tmp_path / "set", [*dates, *dates[::-1], "2020-01-01", "2024-02-02", "2020-05-05"], each=3)
    told = split(source, tmp_path / "out", "--identities", 2, "--by-time", "taken", "--gallery", 2)
    assert "6 pictures of 2 identities, 4 in the gallery, 2 probes" in told
    by_label: dict[int, list[dict]] = {}
    for record in records(tmp_path / "out" / "heldout").values():
        by_label.setdefault(record["label"], []).append(record)
    assert sorted(by_label) == [0, 1]
    for found in by_label.values():
        latest = max(found, key=lambda record: record["taken"][:10])
        assert [record["role"] for record in found if record is not latest] == ["gallery", "gallery"]
        assert latest["role"] == "probe"
        assert latest["camera"] == "Žižkov"
    before, after = members(source.parent / "out" / "train"), members(source.parent / "out" / "heldout")
    assert {name for name in before | after if name.endswith("npy")} == {f"cam/{n:03d}.npy" for n in range(9)}
    assert len(identities(tmp_path / "out" / "train")) == 1


def test_identities_with_too_few_pictures_stay_in_train_and_this_is_said(tmp_path):
    files = [(f"{n}.{kind}", jpeg(n) if kind == "jpg" else b"%d" % label)
             for n, label in enumerate([0, 0, 1, 2, 2, 4, 4, 5]) for kind in ("jpg", "cls")]  # fmt: skip
    tar_of(tmp_path / "set" / "t.tar", [*files, ("bad.jpg", b""), ("bad.cls", b"1")])
    told = split(tmp_path / "set", tmp_path / "out", "--identities", 3)
    assert {name for _, name, _ in identities(tmp_path / "out" / "heldout")} == {"0", "2", "4"}
    assert {name for _, name, _ in identities(tmp_path / "out" / "train")} == {"1", "5"}
    assert "identities with 1 picture or fewer, which stay in train: 2" in told
    assert "without a picture, which are in neither part: 1" in told
    assert "left out: 1 samples that cannot be used, e.g. t.tar, sample bad: bad.jpg is empty" in told
    assert "6 pairs, half of them of one identity; too few for ten folds" in told


def test_samples_of_one_key_that_become_neighbours_stay_two(tmp_path):
    files = []
    for number, label in enumerate([0, 1, 0, 2, 1, 2]):
        key = "same" if label < 2 else f"own{number}"
        files += [(f"{key}.jpg", jpeg(number)), (f"{key}.cls", b"%d" % label), (f"apart{number}.txt", b"between")]
    tar = tar_of(tmp_path / "set" / "t.tar", files)
    count = len(write_index(tar, tar.with_suffix(".idx")).samples)
    Manifest(32, 3, (Shard("t.tar", count, tar.stat().st_size, sha256_of(tar)),)).save(tmp_path / "set")
    split(tmp_path / "set", tmp_path / "out", "--identities", 2)
    assert len(pictures(tmp_path / "out" / "heldout")) + len(pictures(tmp_path / "out" / "train")) == 6


@pytest.mark.parametrize(
    ("identities", "message"),
    [
        ("0%", "more than 0% and less than 100%"),
        ("100%", "more than 0% and less than 100%"),
        ("-3", "a number of identities, as 500, or a percentage"),
        ("many", "a number of identities, as 500, or a percentage"),
        ("1", "at least 2, so that there are pairs"),
        ("3%", "1 of 24 identities: expected at least 2"),
        ("24", "nobody would be left to train on"),
        ("25", "nobody would be left to train on"),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused_with_the_reason(given, tmp_path, identities, message):
    with pytest.raises(UserError, match=message):
        split(given[0] / "set", tmp_path / "out", f"--identities={identities}")
    assert not (tmp_path / "out" / "train").exists()


def test_more_gallery_pictures_than_people_have_are_refused(given, tmp_path):
    with pytest.raises(UserError, match="only 0 have more than 3 pictures, 3 for the gallery and one as a probe"):
        split(given[0] / "set", tmp_path / "out", "--identities", 2, "--gallery", 3)


def test_outputs_that_are_not_free_are_refused(given, tmp_path):
    folder, _ = given
    for out, message in (
        (folder / "set", "is the set .* itself"),
        (folder / "set" / "in", "lie in one another"),
        (folder, "lie in one another"),
    ):
        with pytest.raises(UserError, match=message):
            split(folder / "set", out, "--identities", 2)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already, which is no split; use another OUT"):
        split(folder / "set", tmp_path, "--identities", 2)
    with pytest.raises(UserError, match="holds a split of other sets, or by other options: wanted was '40%', is '2'"):
        split(folder / "set", folder / "out", "--identities", 2)
    with pytest.raises(UserError, match="already"):
        split(folder / "out" / "heldout", tmp_path / "out", "--identities", 2)


def test_pictures_without_a_time_are_counted_and_the_first_is_named(tmp_path):
    times = [2020, None, float("nan"), True, "yesterday", ["2024"], "2024-13-01", 10**400]
    source = foreign(tmp_path / "set", times)
    with pytest.raises(UserError, match=r"7 of 8 samples of .* have no time .* first: part-1\.tar, sample 001: none"):
        split(source, tmp_path / "out", "--identities", 2, "--by-time", "taken")


def test_dates_and_numbers_are_not_compared(tmp_path):
    source = foreign(tmp_path / "set", [2020, "2021-01-01", 2022, 2023, 2024, 2025])
    with pytest.raises(UserError, match=r"some samples of .* have a date, others a number"):
        split(source, tmp_path / "out", "--identities", 2, "--by-time", "taken")


def test_a_split_that_was_stopped_goes_on_to_the_same_bytes_and_is_no_set_before(given, tmp_path, monkeypatch):
    folder, _ = given
    out = tmp_path / "out"

    def stopped(path, body, *_):
        if where is part:  # a shard is complete, the others are not
            write_json(path, body)
        raise KeyboardInterrupt

    for where, name in ((part, "write_json"), (job, "write_bin"), (job, "_end")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, stopped)
            with pytest.raises(AssertionError, match="out is not complete; the same command goes on where it was"):
                split(folder / "set", out, "--identities", "40%")
        assert not (out / "train").exists()
        assert not (out / "heldout").exists()
    (out / ".prep" / "heldout").rename(out / "heldout")  # killed between the renames at the end
    split(folder / "set", out, "--identities", "40%")
    assert every_file(out) == every_file(folder / "out")


def test_a_shard_that_changed_since_its_manifest_is_named(given, tmp_path):
    shutil.copytree(given[0] / "set", tmp_path / "set")
    tar = tmp_path / "set" / "x-000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(WorkError, match=r"x-000001\.tar: sha256 \w+, the manifest says"):
        split(tmp_path / "set", tmp_path / "out", "--identities", 2)
    assert not (tmp_path / "out" / "heldout").exists()
