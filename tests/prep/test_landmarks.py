"""`headcount prep align --landmarks`: crops follow points that were made elsewhere, and no detector runs."""

import csv
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.align import crop_box, crop_landmarks
from data_prep.decode import decode
from data_prep.job.plan import JobFiles, JobOptions, JobPlan
from data_prep.job.progress import StageBars
from data_prep.job.report_samples import marked
from data_prep.job.run import run_job
from data_prep.landmarks.table import EDGES, POINTS, open_table
from data_prep.landmarks.transform import Placed
from data_prep.sources.open import open_source
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from tests.data.sets import picture
from tests.prep.jobs import InProcess
from tests.prep.merging import members

FACE = [[30.0, 40], [50, 41], [40, 52], [32, 62], [49, 63]]
EYES_OUTSIDE = [[-3.0, 40], [50, -1], [40, 52], [32, 62], [49, 63]]


@pytest.fixture
def photos(tmp_path):
    """Two photos each of two people."""
    for person in "ab":
        (tmp_path / "photos" / person).mkdir(parents=True)
        for number in range(2):
            pixels = picture(10 * ord(person) + number, 96)
            cv2.imwrite(str(tmp_path / "photos" / person / f"{number}.png"), pixels)
    return tmp_path / "photos"


def row(path, points=FACE, box=(20, 30, 60, 70)):
    names = ("path", *EDGES, *POINTS)
    return dict(zip(names, (path, *box, *np.ravel(points).tolist()), strict=True))


def write_table(path, rows, wanted=("path", *EDGES, *POINTS)):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: each[name] for name in wanted} for each in rows]), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["other", *wanted], extrasaction="ignore", restval="x,y")
        writer.writeheader()
        writer.writerows(rows)
    return path


def in_set(out):
    """Picture and record of each sample, by key."""
    found = members(out)
    keys = {name.partition(".")[0] for name in found}
    return {key: {"jpg": found[f"{key}.jpg"], "json": json.loads(found[f"{key}.json"])} for key in keys}


def align(photos, table, out, **more):
    options = JobOptions(source=open_source(photos), transform=Placed(table=open_table(table), **more))
    run_job(out, options, InProcess(), StageBars(quiet=True))
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    return {each["source"]: each["reason"] for each in rejects}


ALL = [row(f"{person}/{number}.png") for person in "ab" for number in range(2)]


@pytest.mark.parametrize("name", ["points.csv", "points.parquet"])
def test_crops_are_at_the_points_of_the_table(photos, tmp_path, name, caplog):
    table = write_table(tmp_path / name, [*ALL[:3], row("a/9.png"), row("c/0.png")])
    assert align(photos, table, tmp_path / "set") == {"b/1.png": "no landmarks"}
    assert "2 of 5 rows are of photos that are not in the source" in caplog.text
    samples = in_set(tmp_path / "set")
    assert len(samples) == 3
    for sample in samples.values():
        pixels = decode((photos / sample["json"]["source"]).read_bytes()).pixels
        expected = crop_landmarks(pixels, np.array(FACE), 112)
        assert np.abs(decode(sample["jpg"]).pixels.astype(int) - expected).mean() < 3
        assert sample["json"]["landmarks"] == FACE
        assert sample["json"]["box"] == [20, 30, 60, 70]
        assert not {"score", "faces"} & set(sample["json"])
    aligner = load_manifest(tmp_path / "set").aligner
    assert (aligner.name, aligner.sha256) == ("landmarks", open_table(table).sha256)


def test_crops_follow_the_boxes_of_the_table_where_that_is_asked(photos, tmp_path):
    table = write_table(tmp_path / "points.csv", [*ALL[:2], row("b/0.png", box=("", "", "", "")), ALL[3]])
    assert align(photos, table, tmp_path / "set", crop="box", margin=0.25) == {"b/0.png": "no box"}
    sample = next(each for each in in_set(tmp_path / "set").values() if each["json"]["source"] == "a/0.png")
    pixels = decode((photos / "a" / "0.png").read_bytes()).pixels
    expected = crop_box(pixels, np.array([20, 30, 60, 70]), 112, 0.25)
    assert np.abs(decode(sample["jpg"]).pixels.astype(int) - expected).mean() < 3
    assert load_manifest(tmp_path / "set").aligner.name == "landmarks box 0.25"


@pytest.mark.parametrize("box", [(0, 0, 100_000, 100_000), (0, 0, 1e30, 1e30), (-50, 0, -10, 40), (96, 0, 130, 40)])
def test_boxes_that_are_of_no_face_are_rejects(photos, tmp_path, box):
    table = write_table(tmp_path / "points.csv", [*ALL[:3], row("b/1.png", box=box)])
    assert align(photos, table, tmp_path / "set", crop="box") == {"b/1.png": "no box"}


def test_points_that_are_of_no_face_are_rejects(photos, tmp_path):
    beyond = [[x + 100, y] for x, y in FACE]
    rows = [
        row("a/0.png", EYES_OUTSIDE),
        row("a/1.png", beyond),
        row("b/0.png", [[30.0, 40]] * 5),
        row("b/1.png", [*FACE[:4], ["", 63]]),
    ]
    found = align(photos, write_table(tmp_path / "points.csv", rows), tmp_path / "set")
    assert found == dict.fromkeys(["a/1.png", "b/0.png", "b/1.png"], "bad landmarks")


@pytest.mark.parametrize(
    ("point", "far"), [(0, (1e4, 40)), (4, (49, 1e4)), (2, (-1e30, 52)), (2, (150, -40)), (4, (0, 0))]
)
def test_one_point_far_from_the_others_makes_a_reject_and_no_black_crop(photos, tmp_path, point, far):
    bad, corner = list(FACE), [[x - 34, y - 60] for x, y in FACE]  # of that face an eye is outside, and both brows
    bad[point] = far
    table = write_table(tmp_path / "points.csv", [*ALL[:2], row("b/0.png", corner), row("b/1.png", bad)])
    assert align(photos, table, tmp_path / "set") == {"b/1.png": "bad landmarks"}


def test_points_by_the_subjects_left_and_right_are_told(photos, tmp_path, caplog):
    subjects = np.array(FACE)[[1, 0, 2, 4, 3]]
    rows = [row(each["path"], subjects) for each in ALL]
    align(photos, write_table(tmp_path / "two.csv", [*rows[:2], *ALL[2:]]), tmp_path / "two")
    assert not caplog.text
    align(photos, write_table(tmp_path / "three.csv", [*rows[:3], ALL[3]]), tmp_path / "three")
    assert "three.csv: of 4 faces with five points 3 have the left eye to the right of the right one" in caplog.text
    assert "expected left and right as the viewer sees them" in caplog.text


def test_a_row_without_any_point_is_that_of_a_photo_without_a_face(photos, tmp_path):
    table = write_table(tmp_path / "points.csv", [*ALL[:3], row("b/1.png", [["", ""]] * 5, [""] * 4)])
    assert align(photos, table, tmp_path / "set") == {"b/1.png": "no landmarks"}


def test_a_path_may_be_written_in_several_ways(photos, tmp_path):
    table = write_table(tmp_path / "points.csv", [row("./a/0.png"), row("b/../a//1.png"), *ALL[2:]])
    assert align(photos, table, tmp_path / "set") == {}
    with pytest.raises(UserError, match=r"1 photos have two rows, e\.g\. '(\./)?a/0\.png'"):
        align(photos, write_table(table, [*ALL, row("./a/0.png")]), tmp_path / "twice")


@pytest.mark.parametrize("named", ["photos.tar:./{}", "photos.tar:{}", "./{}", "{}"])
def test_members_of_a_tar_may_begin_with_a_dot(photos, tmp_path, named):
    tar = pack(tmp_path / "photos.tar", photos, "./")
    rows = [row(named.format(each["path"])) for each in ALL]
    assert align(tar, write_table(tmp_path / "points.csv", rows), tmp_path / "set") == {}


def test_a_photo_with_two_rows_is_refused_by_name_before_any_work(photos, tmp_path):
    table = write_table(tmp_path / "points.csv", [*ALL, row("b/0.png")])
    with pytest.raises(UserError, match=r"points\.csv: 1 photos have two rows, e\.g\. 'b/0\.png'; keep one row"):
        align(photos, table, tmp_path / "set")
    align(photos, write_table(table, ALL), tmp_path / "set")
    assert load_manifest(tmp_path / "set").samples == 4


def pack(path, folder, start=""):
    with tarfile.open(path, "w") as tar:
        for photo in sorted(folder.rglob("*.png")):
            data = photo.read_bytes()
            info = tarfile.TarInfo(f"{start}{photo.relative_to(folder)}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_photos_in_tars_are_named_with_their_tar_or_without(photos, tmp_path):
    tar = pack(tmp_path / "photos.tar", photos)
    rows = [row("photos.tar:a/0.png"), *ALL[1:]]
    assert align(tar, write_table(tmp_path / "points.csv", rows), tmp_path / "set") == {}
    with pytest.raises(UserError, match=r"photo 'photos\.tar:a/0\.png' has two rows"):
        align(tar, write_table(tmp_path / "twice.csv", [*rows, ALL[0]]), tmp_path / "twice")
    (tmp_path / "tars").mkdir()
    for name in ("x.tar", "y.tar"):
        pack(tmp_path / "tars" / name, photos)
    with pytest.raises(UserError, match=r"could be of 'y\.tar:./..png' and of|of 'x\.tar:./..png' and of"):
        align(tmp_path / "tars", tmp_path / "points.csv", tmp_path / "both")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "path,left_eye_x\na,1\n", "left_eye_y"),
        ("t.csv", ",".join(("path", *POINTS)) + "\na/0.png" + ",1" * 9 + ",one\n", "one"),
        ("t.csv", ",".join(("path", "left", *POINTS)) + "\na/0.png" + ",1" * 11 + "\n", "left alone of a box"),
        ("t.csv", ",".join(("path", *POINTS)) + "\n" + ",1" * 10 + "\n", "no path"),
        ("t.csv", "", "expected a"),
        ("t.csv", b"\xff\xfe\x00", "expected a"),
        ("t.parquet", b"PAR1", "expected a"),
        ("t.txt", "a", r"no known kind \(\.txt\)"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        open_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_table_of_other_photos_and_an_empty_one_are_refused(photos, tmp_path):
    with pytest.raises(UserError, match="none of its 1 rows is of a photo"):
        align(photos, write_table(tmp_path / "points.csv", [row("x/0.png")]), tmp_path / "set")
    with pytest.raises(UserError, match="no row in it"):
        align(photos, write_table(tmp_path / "none.csv", []), tmp_path / "set")


def test_a_job_keeps_its_table_whatever_becomes_of_the_file(photos, tmp_path):
    table = write_table(tmp_path / "points.csv", ALL)
    align(photos, table, tmp_path / "set")
    table.unlink()
    assert JobPlan(JobFiles(tmp_path / "set")).options.transform.table.path == table


def test_the_report_marks_points_without_a_box_and_a_score(photos):
    photo = decode((photos / "a" / "0.png").read_bytes())
    assert (marked(photo, {"landmarks": FACE}) != marked(photo, {})).any()
    assert (marked(photo, {"box": [20, 30, 60, 70], "score": 0.9}) != marked(photo, {})).any()
