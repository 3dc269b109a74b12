"""Faces that do not count, photos that are not there or listed twice: said, or refused, wherever lists are used."""

import json
import logging
import os

import numpy as np
import pytest

from data_prep.faces.annotated import open_faces
from data_prep.faces.listed import NO_SIZE, OUTSIDE
from data_prep.mtcnn.training.config import DetectorRecipe
from data_prep.mtcnn.training.job import train_detector
from data_prep.mtcnn.training.photos import open_photos
from data_prep.mtcnn.training.stage import Stage
from dist_train.errors import UserError
from tests.prep.test_faces import (
    FACE,
    FIVE,
    NONE,
    RETINAFACE,
    WIDER,
    write_celeba,
    write_retinaface,
    write_table,
    write_wider,
)
from tests.prep.test_judge import evaluate, write_fddb
from tests.prep.test_layouts import put, text

SIZE = (80, 80)
BEYOND = (90.0, 20.0, 120.0, 60.0)
FLAT = (10.0, 20.0, 10.0, 60.0)
FAR_FIVE = tuple(value + 80 * (at % 2 == 0) for at, value in enumerate(FIVE))
SUBJECTS = np.reshape(FIVE, (5, 2))[[1, 0, 2, 4, 3]].ravel().tolist()


def write_large(root, rows):
    """A table as `write_table` makes it, beside photos that faces fit into."""
    write_table(root, rows)
    put(root, *dict.fromkeys(row[0] for row in rows), size=SIZE)
    return root


def write_wider_and_celeba(root):
    write_wider(root / "wider", *WIDER)
    write_celeba(root / "celeba")
    put(root / "celeba" / "Img" / "img_celeba", "a.jpg", "b.jpg", size=SIZE)
    return root / "wider", root / "celeba"


def opened(*paths, heldout=0.4):
    return open_photos(paths, seed=0, heldout=heldout, most_heldout=500, min_face_px=20)


def test_faces_that_do_not_count_are_told_and_counted_by_kind(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    rows = [("a.jpg", *FACE, *FIVE), ("a.jpg", *FLAT, *NONE), ("b.jpg", *BEYOND, *NONE), ("b.jpg", *BEYOND, *NONE)]
    folder = write_large(tmp_path / "set", rows)
    result = evaluate(monkeypatch, folder, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    said = [line for line in caplog.text.splitlines() if "odd faces" in line]
    assert [line.partition("odd faces: ")[2] for line in said] == [f"{NO_SIZE} 1", f"{OUTSIDE} 2"]
    (figures,) = json.loads((tmp_path / "f.json").read_text())
    assert figures["set"]["odd"] == {NO_SIZE: 1, OUTSIDE: 2}
    assert figures["faces"] == 1


@pytest.mark.parametrize(("box", "points", "kind"), [(FLAT, NONE, NO_SIZE), (BEYOND, FAR_FIVE, OUTSIDE)])
def test_a_list_of_which_no_face_is_left_is_refused(tmp_path, monkeypatch, box, points, kind):
    folder = write_large(tmp_path / "set", [(name, *box, *points) for name in ("a.jpg", "b.jpg", "c.jpg")])
    error = evaluate(monkeypatch, folder, "--json", tmp_path / "f.json").exception
    assert isinstance(error, UserError)
    assert f"faces.csv: all of its 3 faces are ignored ({kind} 3)" in str(error)
    assert not (tmp_path / "f.json").exists()
    with pytest.raises(UserError, match=rf"no face of 20 px .* in 2 photos \({kind} [23]\); O-Net learns points"):
        opened(folder)


def test_photos_without_any_face_are_judged_by_their_false_alarms(tmp_path, monkeypatch):
    folder = write_large(tmp_path / "set", [("a.jpg", *(None,) * 4, *NONE), ("b.jpg", *(None,) * 4, *NONE)])
    result = evaluate(monkeypatch, folder, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "f.json").read_text())[0]["found"] == 2


def test_a_training_tells_of_faces_that_do_not_count_before_it_learns(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    rows = [(f"{number}.jpg", *box, *SUBJECTS) for number in range(4) for box in (FACE, FLAT)]
    rows += [(f"{number}.jpg", *BEYOND, *NONE) for number in range(4)]
    folder = write_large(tmp_path / "set", rows)
    monkeypatch.setattr(Stage, "_train", lambda self: None)
    recipe = {"out": tmp_path / "out", "sets": [folder], "workers": 0, "threads": 1, "device": "cpu"}
    assert train_detector(DetectorRecipe.model_validate(recipe)) == 130
    assert f"odd faces: {NO_SIZE} 4" in caplog.text
    assert f"odd faces: {OUTSIDE} 3" in caplog.text  # that of the held-out photo is not seen yet
    assert "of 4 faces with five points 4 have the left eye to the right of the right one" in caplog.text


@pytest.mark.parametrize(("exchanged", "warned"), [(0, False), (2, False), (3, True)])
def test_points_by_the_subjects_left_and_right_are_told_of_most_faces(tmp_path, caplog, exchanged, warned):
    rows = [("a.jpg", *FACE, *(SUBJECTS if number < exchanged else FIVE)) for number in range(4)]
    write_table(tmp_path, [*rows, ("a.jpg", *FACE, *NONE), ("a.jpg", *FACE, *NONE)])
    open_faces(tmp_path).tell()
    told = f"of 4 faces with five points {exchanged} have the left eye to the right of the right one, and {exchanged}"
    assert (told in caplog.text) == warned
    assert ("exchange left_eye and right_eye" in caplog.text) == warned


def test_lists_of_two_layouts_are_one_training_in_which_no_photo_is_learnt_from_and_held_out(tmp_path):
    photos = opened(*write_wider_and_celeba(tmp_path))
    assert [each.name for each in photos.lists] == ["wider", "celeba"]
    learnt, heldout = ({photos[number].path for number in part} for part in (photos.training, photos.heldout))
    assert len(learnt) + len(heldout) == 5
    assert heldout
    assert not learnt & heldout


def test_a_photo_of_two_lists_is_refused(tmp_path):
    wider, celeba = write_wider_and_celeba(tmp_path)
    path = open_faces(wider).path
    for twice in (celeba, celeba / "Anno" / "list_bbox_celeba.txt", celeba / "Img" / ".."):
        with pytest.raises(UserError, match=r"2 photos are listed twice, e\.g\. .*a\.jpg in .*: keep each photo"):
            opened(wider, celeba, twice)
    text(wider / "label.txt", *RETINAFACE)
    with pytest.raises(UserError, match=rf"3 photos .*0--Parade/a\.jpg in {path} and in .*label\.txt"):
        opened(path, wider / "label.txt", celeba)
    link = write_large(tmp_path / "own", [("a.jpg", *FACE, *FIVE), ("b.jpg", *FACE, *FIVE)]) / "b.jpg"
    link.unlink()
    link.symlink_to("a.jpg")
    with pytest.raises(UserError, match="1 photos are listed twice"):
        opened(tmp_path / "own")


def test_five_points_are_looked_for_in_all_photos(tmp_path):
    count = 2100
    last = np.random.default_rng([0, count]).permutation(count)[-1]
    write_large(tmp_path, [("0.jpg", *FACE, *FIVE)])
    lines = [(tmp_path / "faces.csv").read_text().splitlines()[0]]
    for number in range(count):
        if number:
            os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
        lines.append(",".join(map(str, (f"{number}.jpg", *FACE, *(FIVE if number == last else [""] * 10)))))
    text(tmp_path / "faces.csv", *lines)
    photos = opened(tmp_path, heldout=0.01)
    assert len(photos.training) > 2000
    assert photos.training[-1] == last


@pytest.mark.parametrize("radii", ["-60 40", "60 -40", "60 0", "nan 40"])
def test_ellipses_without_an_area_are_refused_with_their_line(tmp_path, radii):
    write_fddb(tmp_path)
    text(tmp_path / "FDDB-folds" / "FDDB-fold-02-ellipseList.txt", "2002/b", "1", f"{radii} 1.2 50 50 1")
    with pytest.raises(UserError, match=rf"02-ellipseList\.txt: line 3: radii {radii.replace(' ', ', ')}; expected"):
        open_faces(tmp_path)


@pytest.mark.parametrize(
    ("write", "photo"),
    [
        (lambda root: write_wider(root, *WIDER), "WIDER_val/images/1--Car/c.jpg"),
        (lambda root: write_retinaface(root, *RETINAFACE), "images/1--Car/c.jpg"),
        (write_celeba, "Img/img_celeba/b.jpg"),
        (write_fddb, "originalPics/2002/b.jpg"),
        (lambda root: write_table(root, [("a.jpg", *FACE, *FIVE), ("in/b.jpg", *FACE, *NONE)]), "in/b.jpg"),
    ],
    ids=["wider", "retinaface", "celeba", "fddb", "table"],
)
def test_lists_of_photos_that_are_not_there_are_refused_by_name(tmp_path, write, photo):
    write(tmp_path)
    count = len(open_faces(tmp_path).photos)
    (tmp_path / photo).unlink()
    name = "/".join(photo.split("/")[-2:]) if "Img" not in photo else "b.jpg"
    with pytest.raises(UserError, match=rf"1 of {count} photos of the list are not in .*: {name}; unpack"):
        open_faces(tmp_path)
