"""Lists of faces in the published layouts give photos, boxes and points; odd faces have a rule; broken lists do not."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data_prep.faces.annotated import open_faces
from data_prep.faces.listed import INVALID, NO_SIZE, POINTS_OUTSIDE
from data_prep.faces.pixels import open_photo, within
from data_prep.faces.table import EDGES, POINTS
from dist_train.data.reject import Reject
from dist_train.errors import UserError
from tests.prep.test_layouts import put, text

FACE = (10.0, 20.0, 40.0, 60.0)
FIVE = (18.0, 32.0, 31.0, 33.0, 24.0, 41.0, 19.0, 50.0, 30.0, 51.0)
FLAGS = "0 0 0 0 0 0"


def write_wider(root, *lines, part="val"):
    put(root / f"WIDER_{part}" / "images", "0--Parade/a.jpg", "0--Parade/b.jpg", "1--Car/c.jpg")
    text(root / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt", *lines)


WIDER = (
    "0--Parade/a.jpg",
    "1",
    f"10 20 30 40 {FLAGS} ",
    "0--Parade/b.jpg",
    "0",
    f"0 0 0 0 {FLAGS} ",
    "1--Car/c.jpg",
    "3",
    f"10 20 30 40 {FLAGS}",
    "1 2 3 4 2 0 0 1 0 0",
    f"5 6 0 9 {FLAGS}",
)


def write_celeba(root, boxes=("a.jpg 10 20 30 40", "b.jpg 1 2 30 40"), points=True):
    put(root / "Img" / "img_celeba", "a.jpg", "b.jpg")
    text(root / "Anno" / "list_bbox_celeba.txt", str(len(boxes)), "image_id x_1 y_1 width height", *boxes)
    rows = [f"{name}  " + " ".join(f"{value:g}" for value in FIVE) for name in ("b.jpg", "a.jpg")]
    if points:
        text(root / "Anno" / "list_landmarks_celeba.txt", "2", "lefteye_x and others", *rows)


def write_table(root, rows, name="faces.csv", points=True):
    """`rows`: path, four edges, ten numbers."""
    put(root, *dict.fromkeys(row[0] for row in rows))
    columns = ["path", *EDGES, *(POINTS if points else ())]
    table = pa.table({column: [row[at] for row in rows] for at, column in enumerate(columns)})
    writer = pq.write_table if name.endswith("parquet") else pyarrow.csv.write_csv
    writer(table, root / name)


def write_retinaface(root, *lines):
    put(root / "images", "0--Parade/a.jpg", "0--Parade/b.jpg", "1--Car/c.jpg")
    text(root / "label.txt", *lines)


MARKED = " ".join(f"{x} {y} 0.0" for x, y in zip(FIVE[::2], FIVE[1::2], strict=True))
RETINAFACE = (
    "# 0--Parade/a.jpg",
    f"10 20 30 40 {MARKED} 0.82",
    f"1 2 3 4 {' '.join(['-1.0'] * 15)} 0.2",
    "# 0--Parade/b.jpg",
    "# 1--Car/c.jpg",
    "5 6 7 8",
    "5 6 0 9",
)


NONE = (None,) * 10


def test_wider_has_photos_without_faces_marked_ones_and_boxes_of_no_size(tmp_path):
    write_wider(tmp_path, *WIDER)
    text(tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt", *WIDER)  # whose photos were not unpacked
    faces = open_faces(tmp_path)
    assert (faces.name, len(faces.photos)) == ("wider", 3)
    one, none, three = faces.photos
    assert one.name == "0--Parade/a.jpg"
    assert one.path == tmp_path / "WIDER_val" / "images" / "0--Parade" / "a.jpg"
    assert one.boxes.tolist() == [list(FACE)]
    assert one.landmarks.shape == (1, 5, 2)
    assert np.isnan(one.landmarks).all()
    assert none.boxes.shape == (0, 4)
    assert three.ignored.tolist() == [False, True, True]
    assert faces.odd == {INVALID: 1, NO_SIZE: 1}
    assert open_faces(faces.path).digest == faces.digest


def test_a_photo_without_faces_may_lack_its_line_of_zeros(tmp_path):
    write_wider(tmp_path, *WIDER[:5], *WIDER[6:])
    assert [len(photo.boxes) for photo in open_faces(tmp_path).photos] == [1, 0, 3]


@pytest.mark.parametrize("at", ["label.txt", ".", ".."])
def test_the_list_of_retinaface_has_five_points_of_some_faces(tmp_path, at):
    write_retinaface(tmp_path / "train", *RETINAFACE)
    text(tmp_path / "val" / "label.txt", *RETINAFACE)  # whose photos were not unpacked
    faces = open_faces(tmp_path / "train" / at)
    assert (faces.name, faces.odd) == ("retinaface", {NO_SIZE: 1})
    one, none, two = faces.photos
    assert one.path == faces.path.parent / "images" / "0--Parade" / "a.jpg"
    assert one.boxes.tolist() == [list(FACE), [1, 2, 4, 6]]
    assert np.allclose(one.landmarks[0].ravel(), FIVE)
    assert np.isnan(one.landmarks[1]).all()
    assert none.boxes.shape == (0, 4)
    assert two.boxes[0].tolist() == [5, 6, 12, 14]
    assert np.isnan(two.landmarks).all()
    assert two.ignored.tolist() == [False, True]


def test_celeba_joins_its_two_lists_by_the_names_of_photos(tmp_path):
    write_celeba(tmp_path)
    faces = open_faces(tmp_path)
    assert [photo.boxes.tolist() for photo in faces.photos] == [[list(FACE)], [[1, 2, 31, 42]]]
    assert np.allclose([photo.landmarks[0].ravel() for photo in faces.photos], [FIVE, FIVE])
    write_celeba(tmp_path / "again", points=False)
    assert np.isnan(open_faces(tmp_path / "again").photos[0].landmarks).all()


def test_one_photo_may_be_named_in_several_ways(tmp_path):
    rows = [(name, *FACE, *NONE) for name in ("./a.jpg", "./a.jpg", ".//b.jpg", "a.jpg")]
    write_table(tmp_path, rows, points=False)
    one, other = open_faces(tmp_path).photos
    assert (one.name, len(one.boxes), other.name, len(other.boxes)) == ("a.jpg", 3, "b.jpg", 1)


def test_a_small_table_of_very_much_text_is_refused_before_it_is_unpacked(tmp_path):
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"path": name, **{edge: np.zeros(20_000) for edge in EDGES}}), tmp_path / "faces.parquet")
    with pytest.raises(UserError, match=r"column path: 20,000,000,000 bytes in 20,000 rows, expected at most"):
        open_faces(tmp_path)


@pytest.mark.parametrize("name", ["faces.csv", "faces.parquet", "mine.tsv"])
def test_a_table_has_a_row_for_each_face_in_any_order(tmp_path, name):
    rows = [("a.jpg", *FACE, *FIVE), ("b.jpg", *(None,) * 4, *NONE), ("a.jpg", 1.0, 2.0, 3.0, 4.0, *NONE)]
    write_table(tmp_path, rows, name.replace("tsv", "csv"))
    if name == "mine.tsv":
        (tmp_path / name).write_text((tmp_path / "mine.csv").read_text().replace(",", "\t"))
    faces = open_faces(tmp_path / name if name == "mine.tsv" else tmp_path)
    a, b = faces.photos
    assert a.boxes.tolist() == [list(FACE), [1, 2, 3, 4]]
    assert np.allclose(a.landmarks[0].ravel(), FIVE)
    assert np.isnan(a.landmarks[1]).all()
    assert not len(b.boxes)
    assert faces.odd == {}


def test_five_points_far_outside_of_their_box_become_unknown_and_the_face_stays(tmp_path):
    beside = (*FIVE[:4], 10 - 0.5 * 30, 41.0, *FIVE[6:])
    far = (*FIVE[:4], 10 - 0.6 * 30, 41.0, *FIVE[6:])
    write_table(tmp_path, [("a.jpg", *FACE, *beside), ("a.jpg", *FACE, *far)])
    faces = open_faces(tmp_path)
    (photo,) = faces.photos
    assert not np.isnan(photo.landmarks[0]).any()
    assert np.isnan(photo.landmarks[1]).all()
    assert not photo.ignored.any()
    assert faces.odd == {POINTS_OUTSIDE: 1}


def test_faces_outside_of_the_picture_are_ignored_and_those_cut_off_are_not(tmp_path):
    write_table(tmp_path, [("a.jpg", *box, *NONE) for box in ((-5, 2, 4, 9), (12, 2, 20, 9), (3, -8, 9, 0))])
    (photo,) = open_faces(tmp_path).photos
    pixels, seen = open_photo(photo)
    assert pixels.shape == (12, 12, 3)
    assert seen.ignored.tolist() == [False, True, True]
    assert within(photo, 13, 12).ignored.tolist() == [False, False, True]
    photo.path.write_bytes(b"no picture")
    assert isinstance(open_photo(photo), Reject)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (WIDER[:7], "ends before all faces of 1--Car/c.jpg"),
        (WIDER[:9], "ends before all faces of 1--Car/c.jpg"),
        (("0--Parade/a.jpg", "many"), "line 2: 'many'; expected the number of faces"),
        (("0--Parade/a.jpg", "1", "1 2 3"), "line 3: '1 2 3' has 3 fields"),
        (("0--Parade/a.jpg", "1", f"1 2 x 3 {FLAGS}"), "line 3: .* expected `left top width"),
        (("0--Parade/a.jpg", "1", f"1 2 -3 3 {FLAGS}"), "line 3: the box from 1, 2 ends before that"),
        (("0--Parade/a.jpg", "1", f"1 2 nan 3 {FLAGS}"), "line 3: box 1, 2, nan"),
        (("0--Parade/a.jpg", "1", f"1 2 1e9 3 {FLAGS}"), "line 3: box .* at most 1,000,000 pixels"),
        ((*WIDER[:3], *WIDER[:3]), "line 4: '0--Parade/a.jpg' is listed twice"),
        ((*WIDER[:3], "../../secret.jpg", "0"), "line 4: photo .* leads out of the folder"),
        ((*WIDER[:3], "/etc/passwd", "0"), "line 4: photo .* leads out of the folder"),
        ((*WIDER[:3], "0--Parade/gone.jpg", "0"), "1 of 2 photos of the list are not in .*: 0--Parade/gone.jpg"),
        ((*WIDER[:3], "x" * 9000), "line 4 has more than 8192 bytes"),
        ((), "no photo in it"),
    ],
)
def test_a_broken_list_of_wider_is_refused_with_its_line(tmp_path, lines, message):
    write_wider(tmp_path, *lines)
    with pytest.raises(UserError, match=message):
        open_faces(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("5 6 7 8", *RETINAFACE), "line 1: '5 6 7 8'; expected `# PATH`"),
        ((*RETINAFACE, "5 6 7"), "line 8: '5 6 7' has 3 fields; expected `left top width"),
        ((RETINAFACE[0], RETINAFACE[1].rpartition(" ")[0]), "line 2: .* has 19 fields"),
        ((RETINAFACE[0], "5 6 7 x"), "line 2: '5 6 7 x'; expected"),
        ((RETINAFACE[0], "5 6 -7 8"), "line 2: the box from 5, 6 ends before that"),
        ((RETINAFACE[0], RETINAFACE[1].replace("18.0", "nan")), "line 2: five points nan, 32"),
        ((*RETINAFACE, RETINAFACE[0]), "line 8: '0--Parade/a.jpg' is listed twice"),
        (("# ../../secret.jpg", "5 6 7 8"), "line 1: photo .* leads out of the folder"),
        (("#", "5 6 7 8"), "line 1: photo '' is no path"),
        ((*RETINAFACE, "# 0--Parade/gone.jpg"), "1 of 4 photos of the list are not in .*: 0--Parade/gone.jpg"),
        ((), "no photo in it"),
    ],
)
def test_a_broken_list_of_retinaface_is_refused_with_its_line(tmp_path, lines, message):
    write_retinaface(tmp_path, *lines)
    with pytest.raises(UserError, match=message):
        open_faces(tmp_path)


@pytest.mark.parametrize(
    ("boxes", "points", "message"),
    [
        (("a.jpg 1 2 3", "b.jpg 1 2 3 4"), True, "line 3: .* has 4 fields"),
        (("a.jpg 1 2 3 4", "a.jpg 1 2 3 4"), True, "line 4: 'a.jpg' is listed twice"),
        (("a.jpg 1 2 3 4", "c.jpg 1 2 3 4"), True, "'c.jpg' of list_bbox_celeba.txt is not in it"),
        (("a.jpg 1 2 3 4", "../b.jpg 1 2 3 4"), False, "line 4: photo '../b.jpg' leads out"),
        (("a.jpg 1 2 3 4", "b.jpg 1 2 3 -4"), True, "line 4: the box from 1, 2 ends before"),
    ],
)
def test_broken_lists_of_celeba_are_refused(tmp_path, boxes, points, message):
    write_celeba(tmp_path, boxes, points)
    with pytest.raises(UserError, match=message):
        open_faces(tmp_path)


def test_a_list_of_celeba_that_is_cut_off_is_refused(tmp_path):
    write_celeba(tmp_path)
    path = tmp_path / "Anno" / "list_bbox_celeba.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match="its head says 2 photos, 1 follow"):
        open_faces(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,left,top,right\na.jpg,1,2,3\n", "no column 'bottom'"),
        ("path,left,top,right,bottom,left\na.jpg,1,2,3,4,5\n", "2 columns 'left'"),
        ("path,left,top,right,bottom,nose_x\na.jpg,1,2,3,4,5\n", "no column 'left_eye_x'"),
        ("path,left,top,right,bottom\na.jpg,1,2,3,4\na.jpg,1,two,3,4\n", "row 2: top is 'two', expected a number"),
        ("path,left,top,right,bottom\na.jpg,10,20,5,5\n", "row 1: the box from 10, 20 ends .* edges in a table"),
        ("path,left,top,right,bottom\na.jpg,1,,3,4\n", "row 1: box 1, nan"),
        ("path,left,top,right,bottom,ignored\na.jpg,1,2,3,4,7\n", "row 1: ignored is 7, expected 0 or 1"),
        ("path,left,top,right,bottom\n,1,2,3,4\n", "row 1: photo '' is no path"),
        ("path,left,top,right,bottom\n../a.jpg,1,2,3,4\n", "row 1: photo '../a.jpg' leads out"),
        (f"path,{','.join((*EDGES, *POINTS))}\na.jpg,1,2,3,4,5{',' * 9}\n", "row 1: five points 5, nan"),
        ("", "no column 'path'"),
    ],
)
def test_a_broken_table_is_refused_with_its_row(tmp_path, content, message):
    put(tmp_path, "a.jpg")
    (tmp_path / "faces.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        open_faces(tmp_path)


@pytest.mark.parametrize(("name", "values", "kind"), [("path", [b"a.jpg"], "binary"), ("left", [[1]], "list")])
def test_a_column_of_another_type_is_refused(tmp_path, name, values, kind):
    put(tmp_path, "a.jpg")
    columns = {"path": ["a.jpg"], **{edge: [1.0] for edge in EDGES}}
    pq.write_table(pa.table(columns | {name: values}), tmp_path / "faces.parquet")
    with pytest.raises(UserError, match=rf"faces\.parquet: .*{name}.*({kind}|expected a number)"):
        open_faces(tmp_path)


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path):
    put(tmp_path, "outside.jpg")
    write_table(tmp_path / "set", [("in/a.jpg", *FACE), ("in/b.jpg", *FACE)], points=False)
    inner = tmp_path / "set" / "in"
    (inner / "b.jpg").unlink()
    (inner / "b.jpg").symlink_to("a.jpg")
    assert len(open_faces(tmp_path / "set").photos) == 2
    (inner / "b.jpg").unlink()
    (inner / "b.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: a link that leads out"):
        open_faces(tmp_path / "set")
    inner.rename(tmp_path / "in")
    inner.symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match=r"a\.jpg: a link that leads out"):
        open_faces(tmp_path / "set")


def test_a_folder_that_holds_none_or_several_lists_is_refused(tmp_path):
    with pytest.raises(UserError, match="no list of faces that is known"):
        open_faces(tmp_path)
    write_wider(tmp_path, *WIDER)
    write_wider(tmp_path, *WIDER, part="train")
    with pytest.raises(UserError, match=r"several lists of faces: .*; name one of them"):
        open_faces(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        open_faces(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "faces.csv")
    with pytest.raises(UserError, match="not a file"):
        open_faces(tmp_path / "faces.csv")
