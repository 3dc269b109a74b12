"""`headcount prep merge`: several sets become one, joined by names."""

import errno
import hashlib
import json
import os
import shutil
import tarfile
import unicodedata
from dataclasses import replace

import pytest
import webdataset

from data_prep import merge_cli
from data_prep.merge import move
from data_prep.merge.sameness import Sameness
from dist_train.data.aligner import Aligner
from dist_train.data.manifest import Manifest, Shard, load_manifest
from dist_train.data.verify import verify_shard
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.sets import RoleSet
from tests.data.tars import tar_of
from tests.prep.merging import content, identities, jpeg, made, members, merge, pictures, table


def problems(folder) -> list:
    manifest = load_manifest(folder)
    return [each for shard in manifest.shards for each in verify_shard(folder, manifest, shard, True, "label").problems]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Three sets; nothing is written to them."""
    folder = tmp_path_factory.mktemp("given")
    made(folder / "a", ["bo", "ann"])
    made(folder / "b", ["eve", "ann", "cy"], seed=100)
    made(folder / "c", ["cy", "dot"], seed=200, shards=1)
    return folder


def test_identities_of_one_name_become_one_and_new_ones_follow_in_their_order(given, tmp_path):
    told = merge(given / "a", given / "b", given / "c", tmp_path / "out", "--identities", "same-name")
    assert "21 pictures of 5 identities in 5 shards" in told
    assert "b: 9 pictures of 3 identities, 1 of the names as in sets before" in told
    assert identities(tmp_path / "out") == [(0, "bo", 3), (1, "ann", 6), (2, "eve", 3), (3, "cy", 6), (4, "dot", 3)]
    every = pictures(given / "a") | pictures(given / "b") | pictures(given / "c")
    assert pictures(tmp_path / "out") == every, "the same bytes, of the same people"
    assert problems(tmp_path / "out") == []


def test_identities_that_are_distinct_are_never_joined(given, tmp_path):
    told = merge(given / "a", given / "b", given / "c", tmp_path / "out", "--identities", "distinct")
    assert "c: 6 pictures of 2 identities, 1 of the names written with the set's name in front" in told
    names = [name for _, name, _ in identities(tmp_path / "out")]
    assert names == ["bo", "ann", "eve", "b/ann", "cy", "c/cy", "dot"]
    assert pictures(tmp_path / "out")[jpeg(101)] == "b/ann"
    assert problems(tmp_path / "out") == []


def test_sets_of_two_aligners_are_joined_only_where_that_is_accepted(given, tmp_path):
    for name, aligner in (("a", Aligner("mtcnn", "a" * 64)), ("b", Aligner("scrfd", "b" * 64))):
        shutil.copytree(given / name, tmp_path / name)
        replace(load_manifest(tmp_path / name), aligner=aligner).save(tmp_path / name)
    both = tmp_path / "a", tmp_path / "b"
    with pytest.raises(UserError, match=r"a was aligned by mtcnn .*b by scrfd .*accept it: --any-aligner"):
        merge(*both, tmp_path / "out", "--identities", "distinct")
    assert not (tmp_path / "out").exists()
    merge(*both, tmp_path / "out", "--identities", "distinct", "--any-aligner")
    assert load_manifest(tmp_path / "out").aligner is None
    shutil.copytree(given / "c", tmp_path / "c")
    replace(load_manifest(tmp_path / "c"), aligner=load_manifest(tmp_path / "a").aligner).save(tmp_path / "c")
    merge(tmp_path / "a", tmp_path / "c", tmp_path / "same", "--identities", "distinct")
    assert load_manifest(tmp_path / "same").aligner.name == "mtcnn"


def test_the_first_sets_shards_are_shared_and_the_others_keys_are_told_apart(given, tmp_path):
    merge(given / "a", given / "b", tmp_path / "out", "--identities", "same-name")
    assert (tmp_path / "out" / "x-000001.tar").samefile(given / "a" / "x-000001.tar")
    prefix = load_manifest(given / "b").digest[:8]
    expected = list(members(given / "a")) + [f"{prefix}-{name}" for name in members(given / "b")]
    assert list(members(tmp_path / "out")) == expected


def test_where_links_are_refused_shards_are_copied(given, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(given / "a", given / "b", tmp_path / "out", "--identities", "same-name")
    assert not (tmp_path / "out" / "x-000001.tar").samefile(given / "a" / "x-000001.tar")
    assert pictures(tmp_path / "out").items() >= pictures(given / "a").items()


def test_a_set_may_be_merged_with_more_sets_later_to_the_same_bytes(given, tmp_path):
    merge(given / "a", given / "b", given / "c", tmp_path / "at once", "--identities", "same-name")
    merge(given / "a", given / "b", tmp_path / "first", "--identities", "same-name")
    merge(tmp_path / "first", given / "c", tmp_path / "then", "--identities", "same-name")
    assert content(tmp_path / "then") == content(tmp_path / "at once")


def test_a_second_call_changes_nothing_and_another_merge_is_refused(given, tmp_path):
    out = tmp_path / "out"
    told = merge(given / "a", given / "b", out, "--identities", "same-name")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    assert merge(given / "a", given / "b", out, "--identities", "same-name") == told
    assert {path: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()} == before
    with pytest.raises(UserError, match="other sets, or by other options: identities was 'same-name', is 'distinct'"):
        merge(given / "a", given / "b", out, "--identities", "distinct")
    with pytest.raises(UserError, match=r"other options: labels was .*; use another OUT"):
        merge(given / "b", given / "a", out, "--identities", "same-name")


def test_all_that_a_sample_carries_goes_with_it_under_its_new_label(given, tmp_path):
    long = f"{'folder/' * 20}0002"
    record = {"label": 0, "role": "probe", "box": [1.5, 2], "source": "Žofie"}
    (tmp_path / "b").mkdir()
    tar_of(
        tmp_path / "b" / "part.tar",
        [
            ("0001.jpg", jpeg(1)), ("0001.cls", b"0\n"), ("0001.json", json.dumps(record).encode()),
            ("0001.emb.npy", bytes(range(256))), ("0001.TXT", b"a note"),
            (f"{long}.jpg", jpeg(2)), (f"{long}.json", b'{"label": 1, "mark": NaN}'),
            ("0003.jpg", jpeg(3)), ("0003.cls", b"1"), ("0003.json", b'{"label":  "a word",   "role": "gallery"}'),
            ("readme.txt", b"in a sample of its own, without a picture"),
        ],
        tarfile.PAX_FORMAT,
    )  # fmt: skip
    told = merge(given / "a", tmp_path / "b", tmp_path / "out", "--identities", "distinct")
    assert "left out: 1 samples" in told
    prefix = load_manifest(tmp_path / "b").digest[:8] + "-"
    found = {name.replace(prefix, ""): data for name, data in members(tmp_path / "out").items() if prefix in name}
    assert json.loads(found.pop("0001.json")) == {**record, "label": 2}
    assert json.loads(found.pop(f"{long}.json"))["label"] == 3
    assert found == {
        "0001.jpg": jpeg(1), "0001.cls": b"2", "0001.emb.npy": bytes(range(256)), "0001.TXT": b"a note",
        f"{long}.jpg": jpeg(2), f"{long}.cls": b"3",
        "0003.jpg": jpeg(3), "0003.cls": b"3", "0003.json": b'{"label":  "a word",   "role": "gallery"}',
    }  # fmt: skip
    assert problems(tmp_path / "out") == []
    files = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    seen = list(webdataset.WebDataset(files, shardshuffle=False).to_tuple("jpg", "cls"))
    assert [int(label) for _, label in seen] == [0, 0, 0, 1, 1, 1, 2, 3, 3]


def test_tars_without_names_are_merged_as_distinct_only(tmp_path):
    for folder, seed in (("one", 0), ("two", 50)):
        labelled = [
            (f"{n}.{kind}", jpeg(seed + n) if kind == "jpg" else b"%d" % (n % 2))
            for n in range(3)
            for kind in ("jpg", "cls")
        ]
        tar_of(tmp_path / folder / "t.tar", labelled)
    with pytest.raises(UserError, match=r"one: 2 of 2 identities have no name .*use --identities distinct"):
        merge(tmp_path / "one", tmp_path / "two", tmp_path / "out", "--identities", "same-name")
    merge(tmp_path / "one", tmp_path / "two", tmp_path / "out", "--identities", "distinct")
    assert identities(tmp_path / "out") == [(0, "0", 2), (1, "1", 1), (2, "two/0", 2), (3, "two/1", 1)]
    assert pictures(tmp_path / "out")[jpeg(51)] == "two/1"


def test_labels_of_a_key_in_json_become_cls_files(given, tmp_path):
    labelled = [
        (f"{n}.{kind}", jpeg(n) if kind == "jpg" else b'{"id": %d}' % n) for n in range(2) for kind in ("jpg", "json")
    ]
    tar_of(tmp_path / "json" / "t.tar", labelled)
    merge(tmp_path / "json", given / "a", tmp_path / "out", "--identities", "distinct", "--label-key", "id")
    assert load_manifest(tmp_path / "out").label_key is None
    assert members(tmp_path / "out")["1.cls"] == b"1"
    assert identities(tmp_path / "out")[:3] == [(0, "0", 1), (1, "1", 1), (2, "bo", 3)]


def test_joined_tars_whose_keys_begin_anew_stay_told_apart(given, tmp_path):
    for number in range(2):
        tar_of(tmp_path / f"{number}.tar", [("k.jpg", jpeg(number)), ("k.cls", b"%d" % number)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "t.tar").write_bytes((tmp_path / "0.tar").read_bytes() + (tmp_path / "1.tar").read_bytes())
    merge(given / "a", tmp_path / "b", tmp_path / "out", "--identities", "distinct")
    found = pictures(tmp_path / "out")
    assert (found[jpeg(0)], found[jpeg(1)]) == ("0", "1")


def test_roles_stay_so_that_a_gallery_grows(tmp_path):
    for folder, names, seed in (("a", ["ann", "bo"], 0), ("b", ["bo", "cy"], 10)):
        made(tmp_path / folder, names, each=2, seed=seed, shards=1)
        path = tmp_path / folder / "x-000000.tar"
        with tarfile.open(path) as tar:
            plain = [(info.name, tar.extractfile(info).read()) for info in tar]
        path.unlink()
        path.with_suffix(".idx").unlink()
        (tmp_path / folder / "manifest.json").unlink()
        roles = [(f"{n:06d}.json", b'{"role": "%s"}' % (b"gallery" if n < 2 else b"probe")) for n in range(4)]
        tar_of(path, sorted(plain + roles))
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "--identities", "same-name")
    with RoleSet(tmp_path / "out") as found:
        assert found.is_gallery.tolist() == [True, True, False, False] * 2
        assert found.labels.tolist() == [0, 1, 0, 1, 1, 2, 1, 2]


def test_unicode_forms_of_one_name_are_one_name_and_any_character_is_kept(tmp_path):
    odd = "two\nlines\x1b[2J"
    composed, parted = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    made(tmp_path / "a", [composed, odd], each=1, shards=1)
    made(tmp_path / "b", [odd, "zoë", parted], each=1, seed=9, shards=1)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "--identities", "same-name")
    assert identities(tmp_path / "out") == [(0, composed, 2), (1, odd, 2), (2, "zoë", 1)]


def test_numbers_as_names_are_joined_with_a_warning(tmp_path, caplog):
    made(tmp_path / "a", ["0", "1"], each=1)
    made(tmp_path / "b", ["1", "ann"], each=1, seed=9)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "--identities", "same-name")
    assert "the 1 names that an earlier set has, too, are numbers, e.g. '1'" in caplog.text


def test_what_does_not_go_together_is_refused_before_anything_is_written(given, tmp_path):
    a, b, out = given / "a", given / "b", tmp_path / "out"
    made(tmp_path / "large", ["ann"], size=40)
    shutil.copytree(a, tmp_path / "copy")
    for arguments, message in (
        ((a, out), "expected at least two sets"),
        ((a, b, a, out), "given twice"),
        ((a, given / "b" / ".." / "a", out), "given twice"),
        ((a, b, a), r"OUT .* is the set .*a itself"),
        ((a, b, b / "new"), "lie in one another"),
        ((a, b, given), "lie in one another"),
        ((a, tmp_path / "large", out), r"a has pictures of 32 px, .*large has pictures of 40 px"),
        ((a, tmp_path / "copy", out), r"a and .*copy hold the same pictures"),
    ):
        with pytest.raises(UserError, match=message):
            merge(*arguments, "--identities", "same-name")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already, which is no merge"):
        merge(a, b, tmp_path / "full", "--identities", "same-name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither manifest\.json nor"):
        merge(a, tmp_path / "empty", out, "--identities", "same-name")
    assert not out.exists()
    assert not (b / "new").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ann", "bo", "ann"], r"two identities of one name: label 0, 'ann', and label 2, 'ann' \(such names: 1\)"),
        (["Zoe\u0308", "bo", "Zo\xeb"], r"label 0, 'Zoe\\u0308', and label 2, 'Zo\\xeb'"),
        (["ann", "bo"], r"1 of 3 identities have no name in identities.parquet"),
        (["ann", "bo", "cy", "dot"], r"4 rows for 3 identities"),
    ],
)
def test_a_table_of_identities_that_does_not_fit_is_refused(given, tmp_path, names, message):
    made(tmp_path / "bad", ["x", "y", "z"], seed=9)
    table(tmp_path / "bad", names, [1] * len(names))
    with pytest.raises(UserError, match=message):
        merge(given / "a", tmp_path / "bad", tmp_path / "out", "--identities", "same-name")


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"num_classes": 1 << 27}, UserError, r"134,217,728 identities, but at most \d+ pictures can be in its shards"),
        ({"samples": 4}, WorkError, r"bad/x-000000\.tar: 3 samples, the manifest says 4"),
    ],
)
def test_a_manifest_that_says_more_than_there_is_is_refused(given, tmp_path, entries, error, message):
    path = made(tmp_path / "bad", ["x"], seed=9, shards=1) / "manifest.json"
    body = json.loads(path.read_text())
    body["shards"][0] |= {key: value for key, value in entries.items() if key in body["shards"][0]}
    path.write_text(json.dumps({**body, **{key: value for key, value in entries.items() if key in body}}))
    with pytest.raises(error, match=message):
        merge(given / "a", tmp_path / "bad", tmp_path / "out", "--identities", "distinct")


def test_a_damaged_table_is_refused(given, tmp_path):
    made(tmp_path / "bad", ["x"], seed=9)
    path = tmp_path / "bad" / "identities.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read"):
        merge(given / "a", tmp_path / "bad", tmp_path / "out", "--identities", "distinct")


@pytest.mark.parametrize("place", ["first", "second"])
def test_shards_that_were_cut_or_changed_are_named(given, tmp_path, place):
    made(tmp_path / "bad", ["x"], seed=9, shards=1)
    sets = (tmp_path / "bad", given / "a") if place == "first" else (given / "a", tmp_path / "bad")
    tar = tmp_path / "bad" / "x-000000.tar"
    sound = tar.read_bytes()
    tar.write_bytes(sound[:600] + b"!" + sound[601:])
    with pytest.raises(WorkError, match=r"bad/x-000000\.tar: sha256 \w+, the manifest says"):
        merge(*sets, tmp_path / "out", "--identities", "distinct")
    tar.write_bytes(sound[:-512])
    with pytest.raises(WorkError, match=r"x-000000\.tar: \d+ bytes, the manifest says"):
        merge(*sets, tmp_path / "out", "--identities", "distinct")
    tar.write_bytes(sound)
    merge(*sets, tmp_path / "out", "--identities", "distinct")
    assert problems(tmp_path / "out") == []


def test_a_first_set_with_labels_beyond_its_classes_gives_nobody_else_their_pictures(given, tmp_path):
    made(tmp_path / "a", ["x", "y"], seed=9, shards=1)
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_classes": 1}))
    table(tmp_path / "a", ["x"], [3])
    assert "left out: 3 samples" in merge(tmp_path / "a", given / "b", tmp_path / "out", "--identities", "same-name")
    assert identities(tmp_path / "out") == [(0, "x", 3), (1, "eve", 3), (2, "ann", 3), (3, "cy", 3)]
    assert pictures(tmp_path / "out").keys() == {jpeg(9), jpeg(11), jpeg(13)} | pictures(given / "b").keys()


def test_sets_without_any_sample_that_can_be_used_become_no_set(tmp_path):
    for folder in ("a", "b"):
        tar_of(tmp_path / folder / "t.tar", [("1.jpg", jpeg(ord(folder)))])
        entry = Shard("t.tar", 1, 10240, hashlib.sha256((tmp_path / folder / "t.tar").read_bytes()).hexdigest())
        Manifest(32, 1, (entry,)).save(tmp_path / folder)
    with pytest.raises(WorkError, match="no sample of any set can be used"):
        merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "--identities", "distinct")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_or_wrong_index_is_made_anew(given, tmp_path):
    made(tmp_path / "a", ["x"], seed=9, shards=2)
    (tmp_path / "a" / "x-000000.idx").unlink()
    (tmp_path / "a" / "x-000001.idx").write_text("v1.2 2\n")
    merge(tmp_path / "a", given / "b", tmp_path / "out", "--identities", "distinct")
    assert problems(tmp_path / "out") == []
    assert len(pictures(tmp_path / "out")) == 3 + 9


def test_an_interrupted_merge_says_how_to_go_on(given, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(move.ShardWriter, "write_members", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_cli.merge([given / "a", given / "b"], tmp_path / "out", Sameness.SAME_NAME, "label", 1)
    assert "out is not complete; the same command goes on where it was" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").glob("x-*.tar")) == ["x-000000.tar", "x-000001.tar"]


def test_after_a_full_disk_the_same_command_goes_on_and_writes_no_shard_twice(given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    merge(given / "a", given / "b", tmp_path / "unbroken", "--identities", "same-name")
    write = move.ShardWriter.write_members

    def until_full(writer, files):
        if len(list(out.glob("x-*.tar"))) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, files)

    with monkeypatch.context() as patch:
        patch.setattr(move.ShardWriter, "write_members", until_full)
        with pytest.raises(WorkError, match=r"No space left on device; make room and run the same command again"):
            merge(given / "a", given / "b", out, "--identities", "same-name")
    assert not (out / "manifest.json").exists()
    first = {path: path.stat().st_mtime_ns for path in out.glob("x-*.tar")}
    (out / "x-000000.tar").unlink()  # a file that is gone, or is another, is made again, whatever its mark says
    merge(given / "a", given / "b", out, "--identities", "same-name")
    assert len(first) == 3
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert content(out) == content(tmp_path / "unbroken")
