"""`headcount prep pairs` on sets that tarfile and json made, read back by pickle."""

import csv
import hashlib
import io
import json
import pickle
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.pairs import make_pairs, write_bin
from dist_train.data.pair_list import Pair
from dist_train.data.photos import UNKNOWN, Missing
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.bin import read_bin
from tests.data.sets import encode, picture
from tests.prep.test_align_cli import run as headcount


def face(source):
    """The picture that stands for the photo `source`."""
    return encode(picture(int(hashlib.md5(source.encode()).hexdigest()[:4], 16), 16), ".png")


def make_set(path, shards, rejects=()):
    """A set whose shards hold the photos `shards`; None instead of a source: a sample that does not name its photo."""
    path.mkdir()
    entries, key = [], 0
    for number, sources in enumerate(shards):
        shard = path / f"x-{number:06d}.tar"
        with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for source in sources:
                record = {} if source is None else {"source": source, "score": 0.9}
                for suffix, data in (("png", face(source or "")), ("cls", b"0"), ("json", json.dumps(record).encode())):
                    member = tarfile.TarInfo(f"{key:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                key += 1
        content = shard.read_bytes()
        entries.append(
            {
                "name": shard.name,
                "samples": len(sources),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    body = {"version": 1, "image_size": 16, "num_classes": 1, "shards": entries}
    (path / "manifest.json").write_text(json.dumps(body))
    columns = [list(column) for column in zip(*rejects, strict=True)] or [[], [], []]
    text = [pa.array(column, pa.string()) for column in columns]
    pq.write_table(pa.table(text, names=["source", "reason", "detail"]), path / "rejects.parquet")
    return path


def lfw(*photos):
    return [f"lfw.tar:{name}/{name}_{number:04d}.jpg" for name, number in photos]


PEOPLE = lfw(("Ann", 1), ("Ann", 2), ("Bo", 1), ("Bo", 2), ("Cy", 1), ("Cy", 3))
LIST = ["2\t2", "Ann\t1\t2", "Bo\t1\t2", "Ann\t1\tCy\t3", "Bo\t2\tCy\t1"]
LIST += ["Cy\t1\t3", "Bo\t2\t1", "Ann\t2\tBo\t1", "Cy\t3\tBo\t2"]


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "pairs.txt").write_text("\n".join(LIST) + "\n")
    return tmp_path / "pairs.txt"


def written(path):
    """Sources are told apart by their pictures."""
    images, same = pickle.loads(path.read_bytes(), encoding="bytes")
    dataset = read_bin(path)
    assert dataset.images == images
    assert dataset.same.tolist() == same
    assert all(type(flag) is bool for flag in same)
    return [(images[2 * number], images[2 * number + 1], flag) for number, flag in enumerate(same)]


def test_all_pairs_of_a_list_come_in_its_order(tmp_path, listed):
    make_set(tmp_path / "set", [PEOPLE[3:], PEOPLE[:3]])
    told = headcount("pairs", listed, tmp_path / "set", tmp_path / "out.bin")
    assert "out.bin: all 8 pairs, 4 of the same person, 4 of two" in told
    ann1, ann2, bo1, bo2, cy1, cy3 = map(face, PEOPLE)
    assert written(tmp_path / "out.bin") == [
        *((ann1, ann2, True), (bo1, bo2, True), (ann1, cy3, False), (bo2, cy1, False)),
        *((cy1, cy3, True), (bo2, bo1, True), (ann2, bo1, False), (cy3, bo2, False)),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"set", "pairs.txt", "out.bin"}


def test_a_rejected_photo_is_named_and_counted_and_its_pairs_are_left_out(tmp_path, listed):
    rejects = [(PEOPLE[0], "no face", "250x250 pixels"), ("lfw.tar:Dan/Dan_0001.jpg", "damaged", "")]
    make_set(tmp_path / "set", [PEOPLE[1:]], rejects)
    told = headcount("pairs", listed, tmp_path / "set", tmp_path / "out.bin")
    assert (
        "out.bin: 6 of 8 pairs, 3 of the same person, 3 of two; 2 left out, so that the folds after them shift" in told
    )
    assert f"photos without a picture: 1 no face; named in {tmp_path / 'out.bin.rejects.csv'}" in told
    assert "'Ann/Ann_0001': no face" in told
    assert [row[2] for row in written(tmp_path / "out.bin")] == [True, False, True, True, False, False]
    rows = list(csv.reader((tmp_path / "out.bin.rejects.csv").read_text().splitlines()))
    assert rows == [["path", "reason", "detail"], ["Ann/Ann_0001", "no face", "250x250 pixels"]]


def test_a_photo_that_the_set_has_never_heard_of_ends_with_status_1_behind_a_written_file(tmp_path, listed):
    make_set(tmp_path / "set", [PEOPLE[1:]])
    with pytest.raises(
        WorkError, match=r"6 of 8 pairs(.|\n)*photos of .*pairs\.txt that are neither in .*set nor .*: 1$"
    ):
        headcount("pairs", listed, tmp_path / "set", tmp_path / "out.bin")
    assert len(written(tmp_path / "out.bin")) == 6
    assert f"Ann/Ann_0001,{UNKNOWN}," in (tmp_path / "out.bin.rejects.csv").read_text()
    make_set(tmp_path / "whole", [PEOPLE])
    headcount("pairs", listed, tmp_path / "whole", tmp_path / "out.bin")
    assert not (tmp_path / "out.bin.rejects.csv").exists(), "it told of an earlier file"


def test_a_damaged_sample_is_left_out_and_named(tmp_path, listed, caplog):
    make_set(tmp_path / "set", [PEOPLE])
    tar = (tmp_path / "set" / "x-000000.tar").read_bytes()
    (tmp_path / "set" / "x-000000.tar").write_bytes(
        tar.replace(b'{"source": "lfw.tar:Ann/Ann_0001', b'("source": "lfw.tar:Ann/Ann_0001')
    )
    with pytest.raises(WorkError, match="6 of 8 pairs"):
        headcount("pairs", listed, tmp_path / "set", tmp_path / "out.bin")
    assert "damaged samples, which cannot be used, the first: " in caplog.text
    assert "000000000: 000000000.json: not JSON" in caplog.text


def test_nothing_is_written_where_no_pair_of_one_kind_is_left(tmp_path, listed):
    make_set(tmp_path / "set", [lfw(("Ann", 2), ("Bo", 1))])
    with pytest.raises(
        UserError, match=r"no pair of the same person is left of 8 pairs .*4 photos: not in the set, the"
    ):
        headcount("pairs", listed, tmp_path / "set", tmp_path / "out.bin")
    (tmp_path / "same.csv").write_text("left,right,same\nAnn/Ann_0002,Bo/Bo_0001,1\n")
    with pytest.raises(UserError, match=r"no pair of two people is left of 1 pairs .*the list has none"):
        headcount("pairs", tmp_path / "same.csv", tmp_path / "set", tmp_path / "out.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"set", "pairs.txt", "same.csv"}


def test_sets_of_another_kind_are_refused(tmp_path, listed):
    make_set(tmp_path / "keep", [[None] * 3])
    with pytest.raises(
        UserError, match=r"none of its 3 samples names the photo .*`headcount prep align` made without --keep"
    ):
        headcount("pairs", listed, tmp_path / "keep", tmp_path / "out.bin")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos: no manifest\.json in it"):
        headcount("pairs", listed, tmp_path / "photos", tmp_path / "out.bin")
    with pytest.raises(UserError, match=r"out\.pkl: expected a name that ends with \.bin"):
        headcount("pairs", listed, tmp_path / "keep", tmp_path / "out.pkl")


@pytest.mark.parametrize(
    ("source", "photo"),
    [
        ("lfw.tar:Ann/Ann_0001.jpg", "Ann/Ann_0001"),
        ("lfw-0003.tar:data/lfw/Ann/Ann_0001.JPEG", "Ann/Ann_0001"),
        ("LFW.TAR:Ann/Ann_0001.jpg", "Ann/Ann_0001"),
        ("lfw.tar.gz:Ann/Ann_0001.png", "Ann/Ann_0001"),
        ("Ann/Ann_0001.jpg", "Ann/Ann_0001"),
        ("./lfw/Ann/Ann_0001.jpg", "Ann/Ann_0001"),
        ("/data/lfw/Ann/Ann_0001.jpg", "lfw/Ann/Ann_0001.jpg"),
        ("Ann/Ann_0001.jpg", "/data/lfw/Ann/Ann_0001.jpg"),
        ("s3://faces/lfw/Ann/1.jpg", "s3://faces/lfw/Ann/1.jpg"),
        ("Ann/photo.of.Ann", "Ann/photo.of.Ann"),
        ("Ann/1.jpg", "Ann/1.png"),
    ],
)
def test_a_photo_is_found_by_its_source_from_whatever_folder_it_is_named(tmp_path, source, photo):
    make_set(tmp_path / "set", [[source, "Zoe/9.jpg"]])
    pairs = [Pair(photo, "Zoe/9.jpg", True), Pair("Zoe/9.jpg", photo, False)]
    made = make_pairs(pairs, tmp_path / "set", tmp_path / "out.bin")
    assert (made.pairs, made.missing) == (pairs, {})
    assert written(tmp_path / "out.bin")[0] == (face(source), face("Zoe/9.jpg"), True)


@pytest.mark.parametrize("source", ["Bann/Ann_0001.jpg", "Ann/Ann_00011.jpg", "Ann_0001.jpg", "Ann/Ann_0001/1.jpg"])
def test_names_that_only_look_alike_are_not_taken(tmp_path, source):
    make_set(tmp_path / "set", [[source, "y/1.jpg", "z/2.jpg"]])
    pairs = [Pair("y/1.jpg", "z/2.jpg", same) for same in (True, False)]
    made = make_pairs([*pairs, Pair("Ann/Ann_0001", "y/1.jpg", True)], tmp_path / "set", tmp_path / "out.bin")
    assert made.pairs == pairs
    assert made.missing == {"Ann/Ann_0001": Missing("Ann/Ann_0001", UNKNOWN, "neither there nor in its rejects")}


@pytest.mark.parametrize(
    ("sources", "rejects", "told"),
    [
        (["a.tar:Ann/1.jpg", "b.tar:Ann/1.jpg"], [], r"any of 2 in the set: 'a\.tar:Ann/1\.jpg', 'b\.tar:Ann/1\.jpg'"),
        (["x/Ann/1.jpg", "y/Ann/1.jpg"], [], r"any of 2 in the set: 'x/Ann/1\.jpg', 'y/Ann/1\.jpg'; name it with more"),
        (["Ann/1.jpg", "Ann/1.jpg"], [], r"any of 2 .* align with one face a photo \(not --faces all\)"),
        (["x/Ann/1.jpg"], [("y/Ann/1.jpg", "no face", "")], r"any of 2 .*'y/Ann/1\.jpg' \(rejected: no face\)"),
        (["Ann/1.png", "Ann/1.webp"], [], r"any of 2 in the set: 'Ann/1\.png', 'Ann/1\.webp'"),
    ],
)
def test_a_photo_that_could_be_several_is_refused_by_name(tmp_path, sources, rejects, told):
    make_set(tmp_path / "set", [[*sources, "Zoe/9.jpg"]], rejects)
    with pytest.raises(UserError, match=rf"photo 'Ann/1\.jpg' of the list could be {told}"):
        make_pairs([Pair("Ann/1.jpg", "Zoe/9.jpg", True)], tmp_path / "set", tmp_path / "out.bin")


def test_equal_names_come_before_others_that_end_alike(tmp_path):
    sources = ["Ann/1.jpg", "x/Ann/1.jpg", "Ann/1.png"]
    make_set(tmp_path / "set", [sources])
    pairs = [Pair("Ann/1.jpg", "x/Ann/1.jpg", True), Pair("Ann/1.png", "Ann/1.jpg", False)]
    make_pairs(pairs, tmp_path / "set", tmp_path / "out.bin")
    assert written(tmp_path / "out.bin") == [
        (face(sources[0]), face(sources[1]), True),
        (face(sources[2]), face(sources[0]), False),
    ]


def test_two_photos_of_the_list_that_would_be_one_are_refused(tmp_path):
    make_set(tmp_path / "set", [["Ann/1.jpg", "Zoe/9.jpg"]])
    pairs = [Pair("x/Ann/1.jpg", "Zoe/9.jpg", True), Pair("y/Ann/1.jpg", "Zoe/9.jpg", False)]
    with pytest.raises(UserError, match=r"'x/Ann/1\.jpg' and 'y/Ann/1\.jpg' of the list would both be 'Ann/1\.jpg'"):
        make_pairs(pairs, tmp_path / "set", tmp_path / "out.bin")


@pytest.mark.parametrize("sizes", [[0], [1, 255, 256, 70_000], [3] * 2_500])
def test_pictures_of_any_number_and_size_are_read_back_by_pickle(tmp_path, sizes):
    pictures = [bytes([number % 256]) * size for number, size in enumerate(sizes) for _ in range(2)]
    same = [number % 3 == 0 for number in range(len(sizes))]
    write_bin(tmp_path / "out.bin", iter(pictures), same)
    assert pickle.loads((tmp_path / "out.bin").read_bytes()) == (pictures, same)


def test_an_output_that_cannot_be_written_is_no_half_file(tmp_path):
    def pictures():
        yield b"first"
        raise OSError(28, "No space left on device")

    (tmp_path / "out.bin").write_bytes(b"old")
    with pytest.raises(WorkError, match=r"out\.bin: cannot be written: No space left"):
        write_bin(tmp_path / "out.bin", pictures(), [True])
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
    assert (tmp_path / "out.bin").read_bytes() == b"old"


def test_photos_become_a_verification_set_by_two_commands(tmp_path):
    for person in range(4):
        (tmp_path / "photos" / f"p{person}").mkdir(parents=True)
        for number in range(2):
            grey = np.full((40, 40, 3), 20 + 50 * person + 3 * number, np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / f"p{person}" / f"{number}.png"), grey)
    arguments = ("--no-face", "centre", "--image-size", 32, "--workers", 1)
    headcount("align", tmp_path / "photos", tmp_path / "set", *arguments)
    rows = [f"{tmp_path}/photos/p{n}/0.png,{tmp_path}/photos/p{m}/1.png,{n == m}" for n in range(4) for m in (n, 3 - n)]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,match", *rows]) + "\n")
    columns = ("--left-column", "a", "--right-column", "b", "--same-column", "match")
    told = headcount("pairs", tmp_path / "pairs.csv", tmp_path / "set", tmp_path / "out.bin", *columns)
    assert "all 8 pairs, 4 of the same person, 4 of two" in told
    levels = [cv2.imdecode(np.frombuffer(image, np.uint8), 0).mean() for image in read_bin(tmp_path / "out.bin").images]
    expected = [20 + 50 * n + 3 * side for p in range(4) for m in (p, 3 - p) for side, n in ((0, p), (1, m))]
    assert np.allclose(levels, expected, atol=1.5)
