"""Folders named as sets are published become sets with roles, fields and pairs; broken ones are refused."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.decode import decode
from data_prep.layouts.job import import_set
from data_prep.layouts.table import LAYOUTS, find_layout
from data_prep.mtcnn.weights import open_networks, write_networks
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.digest import sha256_of
from tests.prep.test_landmarks import in_set
from tests.prep.test_mtcnn import portrait


def put(root, *names, size=(12, 12)):
    """Pictures of a random colour each."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = np.random.default_rng(len(name) + sum(name.encode())).integers(0, 256, 3)
        cv2.imwrite(str(path), np.broadcast_to(color.astype(np.uint8), (*size, 3)))


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_sop(root):
    put(root, *(f"bicycle_final/11{n}_{view}.JPG" for n in range(4) for view in range(2)), size=(10, 14))
    head = "image_id class_id super_class_id path"
    for name, numbers in (("train", (0, 1)), ("test", (2, 3))):
        rows = [f"{9 * n + v} {n + 1} 1 bicycle_final/11{n}_{v}.JPG" for n in numbers for v in range(2)]
        text(root / f"Ebay_{name}.txt", head, *rows)


def write_inshop(root):
    rows = []
    for item, status in ((1, "train"), (2, "query"), (2, "gallery")):
        name = f"img/WOMEN/Dresses/id_{item:08d}/0{len(rows) + 1}_1_front.jpg"
        put(root / "Img", name)
        rows.append(f"{name}      id_{item:08d}   {status}")
    text(root / "Eval" / "list_eval_partition.txt", str(len(rows)), "image_name item_id evaluation_status", *rows)


def write_market(root):
    put(root / "bounding_box_train", "0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg")
    put(root / "query", "0001_c1s1_001051_00.jpg")
    put(root / "bounding_box_test", "0001_c2s1_000301_00.jpg", "0000_c1s1_000151_01.jpg", "0000_c2s1_000151_01.jpg")
    put(root / "bounding_box_test", "-1_c1s1_000401_03.jpg")
    (root / "query" / "Thumbs.db").write_bytes(b"windows")


def write_tinyface(root):
    put(root / "Training_Set", "5/a.jpg", "9/b.jpg")
    put(root / "Testing_Set" / "Probe", "12_1.jpg", "13_1.jpg")
    put(root / "Testing_Set" / "Gallery_Match", "12_2.jpg", "13_2.jpg")
    put(root / "Testing_Set" / "Gallery_Distractor", "1_2_some.jpg")


def write_cfp(root):
    names = {}
    for short, pose in (("F", "frontal"), ("P", "profile")):
        names[short] = [f"../Data/Images/{person:03d}/{pose}/{n:02d}.jpg" for person in (1, 2) for n in (1, 2)]
        put(root / "Protocol", *names[short])
        text(root / "Protocol" / f"Pair_list_{short}.txt", *(f"{n} {name}" for n, name in enumerate(names[short], 1)))
    for kind in ("FF", "FP"):
        for fold in ("01", "02"):
            text(root / "Protocol" / "Split" / kind / fold / "same.txt", "1,2")
            text(root / "Protocol" / "Split" / kind / fold / "diff.txt", "1,3")


def write_agedb(root):
    put(root, "0_MariaCallas_35_f.jpg", "1_MariaCallas_40_f.jpg", "2_Ludwig van Beethoven_50_m.jpg")


def write_xqlfw(root):
    put(root / "lfw_original_imgs", "Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob/Bob_0001.jpg")
    text(root / "xqlfw_pairs.txt", "1 1", "Ann\t1\t2", "Ann\t1\tBob\t1")


def write_rfw(root):
    for group in ("African", "Asian"):
        one, two = f"m.0{group[:2]}1", f"m.0{group[:2]}2"
        put(root / "test" / "data" / group, f"{one}/{one}_0001.jpg", f"{one}/{one}_0002.jpg", f"{two}/{two}_0001.jpg")
        listed = root / "test" / "txts" / group / f"{group}_pairs.txt"
        text(listed, f"{one}\t1\t2", f"{one}\t2\t{two}\t1")


WRITERS = {
    "sop": write_sop,
    "inshop": write_inshop,
    "market": write_market,
    "tinyface": write_tinyface,
    "cfp": write_cfp,
    "agedb": write_agedb,
    "xqlfw": write_xqlfw,
    "rfw": write_rfw,
}
# Of each layout's sets: (source's last part, role, further fields) of every picture, and its identities in order.
EXPECTED = {
    "sop": {
        "train": ({(f"11{n}_{v}.JPG", None, ("1",)) for n in (0, 1) for v in (0, 1)}, ["1", "2"]),
        "test": ({(f"11{n}_{v}.JPG", None, ("1",)) for n in (2, 3) for v in (0, 1)}, ["3", "4"]),
    },
    "inshop": {
        "train": ({("01_1_front.jpg", None, ())}, ["id_00000001"]),
        "test": ({("02_1_front.jpg", "probe", ()), ("03_1_front.jpg", "gallery", ())}, ["id_00000002"]),
    },
    "market": {
        "train": (
            {("0002_c1s1_000451_03.jpg", None, (1,)), ("0007_c3s3_077419_03.jpg", None, (3,))},
            ["0002", "0007"],
        ),
        "test": (
            {
                ("0001_c1s1_001051_00.jpg", "probe", (1,)),
                ("0001_c2s1_000301_00.jpg", "gallery", (2,)),
                ("0000_c1s1_000151_01.jpg", "gallery", (1,)),
                ("0000_c2s1_000151_01.jpg", "gallery", (2,)),
            },
            ["0001", "0000_c1s1_000151_01", "0000_c2s1_000151_01"],
        ),
    },
    "tinyface": {
        "train": ({("a.jpg", None, ()), ("b.jpg", None, ())}, ["5", "9"]),
        "test": (
            {(f"{n}_1.jpg", "probe", ()) for n in (12, 13)}
            | {(f"{n}_2.jpg", "gallery", ()) for n in (12, 13)}
            | {("1_2_some.jpg", "gallery", ())},
            ["12", "13", "stranger 1_2_some.jpg"],
        ),
    },
    "cfp": {
        "test": ({(f"{n:02d}.jpg", None, (pose,)) for n in (1, 2) for pose in ("frontal", "profile")}, ["001", "002"])
    },
    "agedb": {
        "test": (
            {
                ("0_MariaCallas_35_f.jpg", None, (35, "f")),
                ("1_MariaCallas_40_f.jpg", None, (40, "f")),
                ("2_Ludwig van Beethoven_50_m.jpg", None, (50, "m")),
            },
            ["MariaCallas", "Ludwig van Beethoven"],
        )
    },
    "xqlfw": {
        "test": ({("Ann_0001.jpg", None, ()), ("Ann_0002.jpg", None, ()), ("Bob_0001.jpg", None, ())}, ["Ann", "Bob"])
    },
    "rfw": {
        "test": (
            {
                (f"m.0{g[:2]}{n}_000{v}.jpg", None, (g,))
                for g in ("African", "Asian")
                for n, v in ((1, 1), (1, 2), (2, 1))
            },
            ["m.0Af1", "m.0Af2", "m.0As1", "m.0As2"],
        )
    },
}
PAIRS = {
    "cfp": {name: [True, False] * 2 for name in ("cfp_ff", "cfp_fp")},
    "xqlfw": {"xqlfw": [True, False]},
    "rfw": {name: [True, False] for name in ("rfw_african", "rfw_asian")},
}


def read_set(directory):
    """What a set says of its pictures, its names, and which label each picture has."""
    import pyarrow.parquet as pq

    names = pq.read_table(directory / "identities.parquet")["name"].to_pylist()
    seen, labels = set(), {}
    with StoredSet(directory) as samples:
        for number in range(len(samples)):
            sample = samples.sample(number)
            fields = tuple(v for k, v in sorted(sample.record.items()) if k not in ("source", "role"))
            seen.add((Path(sample.record["source"]).name, sample.record.get("role"), fields))
            labels[sample.record["source"]] = names[sample.label]
    return seen, names, labels


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_as_it_is_downloaded_becomes_its_sets_and_pairs(tmp_path, name):
    root = tmp_path / "folder"
    WRITERS[name](root)
    layout = find_layout(root)
    assert layout.name == name
    made = import_set(root, tmp_path / "out", layout)
    assert set(made.parts) == set(EXPECTED[name])
    for part, (pictures, identities) in EXPECTED[name].items():
        seen, names, _ = read_set(tmp_path / "out" / part)
        assert seen == pictures
        assert names == identities
    assert made.pairs == {each: len(same) for each, same in PAIRS.get(name, {}).items()}
    for each, same in PAIRS.get(name, {}).items():
        assert read_bin(tmp_path / "out" / f"{each}.bin").same.tolist() == same


def test_agedb_gets_ten_folds_of_pairs_thirty_years_apart_where_its_people_allow(tmp_path, caplog):
    put(tmp_path / "folder", *(f"{n}_Person{n // 2}_{20 + 31 * (n % 2)}_f.jpg" for n in range(40)))
    made = import_set(tmp_path / "folder", tmp_path / "out", LAYOUTS["agedb"])
    assert made.pairs == {"agedb_30_drawn": 40}
    assert read_bin(tmp_path / "out" / "agedb_30_drawn.bin").same.tolist() == [True, True, False, False] * 10
    write_agedb(tmp_path / "few")
    assert import_set(tmp_path / "few", tmp_path / "none", LAYOUTS["agedb"]).pairs == {}
    assert "few: too few pictures 30 years apart for 10 folds of pairs: none are made" in caplog.text


def test_labels_are_those_of_the_lists_and_bytes_are_the_same_every_time(tmp_path):
    root = tmp_path / "folder"
    write_market(root)
    made = import_set(root, tmp_path / "one", LAYOUTS["market"])
    assert made.left_out == {"pictures of nobody (-1)": 1}
    _, _, labels = read_set(tmp_path / "one" / "test")
    assert labels["query/0001_c1s1_001051_00.jpg"] == labels["bounding_box_test/0001_c2s1_000301_00.jpg"] == "0001"
    import_set(root, tmp_path / "again", LAYOUTS["market"])
    for path in filter(Path.is_file, (tmp_path / "one").rglob("*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "one")).read_bytes()


def test_pictures_are_copied_as_they_are_or_scaled_to_squares(tmp_path):
    root = tmp_path / "folder"
    write_sop(root)
    made = import_set(root, tmp_path / "copied", LAYOUTS["sop"])
    assert made.oblong == 8
    with StoredSet(tmp_path / "copied" / "test") as samples:
        sample = samples.sample(0)
        assert sample.image.tobytes() == (root / sample.record["source"]).read_bytes()
    assert load_manifest(tmp_path / "copied" / "test").image_size == 14
    assert import_set(root, tmp_path / "scaled", LAYOUTS["sop"], "resize", 24, shard=3).oblong == 0
    manifest = load_manifest(tmp_path / "scaled" / "train")
    assert (manifest.image_size, [shard.samples for shard in manifest.shards]) == (24, [3, 1])
    with StoredSet(tmp_path / "scaled" / "train") as samples:
        assert cv2.imdecode(samples.sample(3).image, cv2.IMREAD_COLOR).shape == (24, 24, 3)


def test_a_folder_of_two_layouts_or_of_none_is_refused(tmp_path):
    write_sop(tmp_path / "both")
    write_market(tmp_path / "both")
    with pytest.raises(UserError, match=r"looks like sop \(Ebay_train.txt\) and market \(bounding_box_train\); "):
        find_layout(tmp_path / "both")
    put(tmp_path / "none", "ann/1.jpg", "ann/old/2.jpg", "ann/old/more/3.jpg", "loose.jpg")
    with pytest.raises(UserError, match=r"of no known layout \(sop: Ebay_train.txt or .*--layout folders"):
        find_layout(tmp_path / "none")
    found = find_layout(tmp_path / "none", "folders").read(tmp_path / "none")
    assert [(entry.path, entry.identity) for entry in found.entries] == [("ann/1.jpg", "ann")]
    assert found.left_out == {"pictures in no identity's folder": 1, "pictures deeper than an identity's folder": 2}
    with pytest.raises(UserError, match="--layout 'imagenet': expected one of sop, inshop, "):
        find_layout(tmp_path / "none", "imagenet")


def broken(root, kind):
    """Break a folder of a layout; the message that names what is wrong."""
    if kind == "a missing list":
        (root / "Ebay_test.txt").unlink()
        return "sop", r"Ebay_test.txt: No such file"
    if kind == "pictures that are not there":
        for view in range(2):
            (root / f"bicycle_final/113_{view}.JPG").unlink()
        return "sop", r"2 of 8 pictures of its lists are not there: '?bicycle_final/113_0.JPG'?, "
    if kind == "a path that leads out":
        text(root / "Ebay_test.txt", "image_id class_id super_class_id path", "1 1 1 ../../etc/passwd")
        return "sop", r"Ebay_test.txt: line 2: .*leads out of the folder"
    if kind == "a line that is cut off":
        text(root / "Ebay_test.txt", "image_id class_id super_class_id path", "1 1")
        return "sop", r"Ebay_test.txt: line 2: '1 1' has 2 fields, expected 4"
    if kind == "a picture listed twice":
        text(root / "Ebay_test.txt", *(root / "Ebay_train.txt").read_text().splitlines())
        return "sop", r"bicycle_final/110_0.JPG'? is listed twice"
    if kind == "a foreign name":
        put(root / "query", "holiday.jpg")
        return "market", r"query/holiday.jpg'?: expected a name such as 0002_c1s1_000451_03.jpg"
    if kind == "an unknown status":
        text(root / "Eval" / "list_eval_partition.txt", "1", "image_name item_id evaluation_status", "img/a.jpg 1 val")
        return "inshop", r"line 3: status 'val', expected one of train, query, gallery"
    if kind == "a pair of unknown numbers":
        text(root / "Protocol" / "Split" / "FP" / "02" / "diff.txt", "1,77")
        return "cfp", r"diff.txt: line 1: '1,77'; expected the numbers of two listed pictures"
    if kind == "a name that is no text":
        (root / "test" / "data" / "Asian" / os.fsdecode(b"m.0As1/\xff.jpg")).touch()
        return "rfw", r"the name is not UTF-8 text; rename it"
    listed = root / "test" / "txts" / "Asian" / "Asian_pairs.txt"
    text(listed, "m.0As1\t1\t2", "m.0As1\t2\tm.0As7\t1")
    return "rfw", r"1 of 7 pictures of its lists are not there: '?test/data/Asian/m.0As7/m.0As7_0001.jpg"


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("sop", "a missing list"),
        ("sop", "pictures that are not there"),
        ("sop", "a path that leads out"),
        ("sop", "a line that is cut off"),
        ("sop", "a picture listed twice"),
        ("market", "a foreign name"),
        ("inshop", "an unknown status"),
        ("cfp", "a pair of unknown numbers"),
        ("rfw", "a name that is no text"),
        ("rfw", "a pair with a picture that is not there"),
    ],
)
def test_a_broken_folder_is_refused_by_name_and_leaves_nothing(tmp_path, layout, kind):
    root = tmp_path / "folder"
    WRITERS[layout](root)
    name, message = broken(root, kind)
    with pytest.raises(UserError, match=message):
        import_set(root, tmp_path / "out", LAYOUTS[name])
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_is_named_and_an_output_that_is_there_stays(tmp_path):
    root = tmp_path / "folder"
    write_sop(root)
    whole = (root / "bicycle_final/110_0.JPG").read_bytes()
    (root / "bicycle_final/110_0.JPG").write_bytes(whole[:-40])
    for shape in ("copy", "resize"):
        with pytest.raises(WorkError, match=r"bicycle_final/110_0.JPG: .*(cut off|Truncated)"):
            import_set(root, tmp_path / "out", LAYOUTS["sop"], shape, 16)
    assert not (tmp_path / "out").exists()
    (root / "bicycle_final/110_0.JPG").write_bytes(whole)
    text(tmp_path / "out" / "notes.txt", "mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        import_set(root, tmp_path / "out", LAYOUTS["sop"])
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine\n"


def test_the_command_tells_what_it_made_and_what_training_would_refuse(tmp_path):
    write_market(tmp_path / "folder")
    put(tmp_path / "folder" / "query", "0001_c3s1_001051_00.jpg", size=(24, 12))
    done = CliRunner().invoke(app, ["import", str(tmp_path / "folder"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for words in (
        "layout market",
        "test: 5 pictures of 3 identities",
        "left out: 1 pictures of nobody (-1)",
        "1 pictures are not square",
    ):
        assert words in done.output


def write_people(root):
    """A photo with a face, another with it mirrored, and one without a face, of two identities."""
    for name, picture in (("a/0", portrait(0.5)), ("a/1", portrait(0.5)[:, ::-1]), ("b/0", portrait(0.5)[-60:])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"{name}.png"), picture[..., ::-1])


def test_faces_are_aligned_by_another_detector_or_by_a_table_of_its_points(tmp_path):
    write_people(tmp_path / "photos")
    write_networks(tmp_path / "mine.safetensors", open_networks(), {})
    points = tmp_path / "points.parquet"
    made = {}
    mine = ["--align", "--detector", tmp_path / "mine.safetensors"]
    commands = {"shipped": ["--align"], "mine": mine, "points": ["--align", "--landmarks", points]}
    detected = ["detect", tmp_path / "photos", "--table", tmp_path / "photos" / points.name, "--faces", "main"]
    assert CliRunner().invoke(app, list(map(str, detected))).exit_code == 0
    (tmp_path / "photos" / points.name).rename(points)
    for name, options in commands.items():
        command = ["import", tmp_path / "photos", tmp_path / name, "--layout", "folders", *options]
        done = CliRunner().invoke(app, list(map(str, command)))
        assert done.exit_code == 0, done.output
        made[name] = load_manifest(tmp_path / name / "all"), in_set(tmp_path / name / "all")
    aligners = {name: manifest.aligner for name, (manifest, _) in made.items()}
    assert len({aligner.sha256 for aligner in aligners.values()}) == 3
    assert aligners["points"].sha256 == sha256_of(points)
    first = made["shipped"][1]
    assert len(first) == 3
    for _, samples in made.values():
        for key, sample in samples.items():
            expected = decode(first[key]["jpg"]).pixels.astype(int)
            assert np.abs(decode(sample["jpg"]).pixels - expected).mean() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "x.onnx"], "--detector goes with --align"),
        (["--landmarks", __file__], "--landmarks goes with --align"),
        (["--align", "--landmarks", __file__, "--min-score", "0.5"], "--min-score goes with looking for faces"),
        (["--align", "--detector", "x.onnx"], "x.onnx"),
        (["--align", "--landmarks", __file__], "of no known kind"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    write_market(tmp_path / "folder")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "folder"), str(tmp_path / "out"), *options])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
