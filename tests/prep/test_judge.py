"""Figures of detectors are those of the plain formulas, and lists of subsets are read or refused."""

import itertools
import json
import re
import zlib

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.drawn.job import draw_faces
from data_prep.drawn.photo import PhotoSpec
from data_prep.faces.annotated import AnnotatedPhoto, open_faces
from data_prep.judge.curves import average_precision, curve_of
from data_prep.judge.fddb import discrete_curve, ellipse_overlaps
from data_prep.judge.mat import read_mat
from data_prep.judge.matching import NEITHER, WRONG, match, match_all
from data_prep.judge.points import point_errors
from data_prep.judge.report import _cut
from data_prep.judge.search import Found
from data_prep.judge.subsets import counted_faces, read_subsets
from data_prep.judge.wider import wider_precision
from data_prep.mtcnn.faces import Faces
from dist_train.errors import UserError, WorkError
from tests.prep.test_faces import FLAGS, WIDER, write_wider
from tests.prep.test_layouts import put, text

CHANCE = np.random.default_rng(7)


def photo_of(boxes, ignored=(), points=None, name="a.jpg"):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    marks = np.isin(np.arange(len(boxes)), ignored)
    landmarks = np.full((len(boxes), 5, 2), np.nan, np.float32) if points is None else points
    return AnnotatedPhoto(name, None, boxes, landmarks, marks)


def faces_of(boxes, scores, points=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    landmarks = np.full((len(boxes), 5, 2), np.nan, np.float32) if points is None else points
    return Faces(boxes, np.array(scores, np.float32), landmarks)


def problem(photos=6):
    """Photos with known faces and found ones near them, doubled, shifted and of nothing; scores repeat."""
    found = []
    for _ in range(photos):
        corners = CHANCE.integers(0, 200, (CHANCE.integers(0, 6), 2))
        known = np.concatenate([corners, corners + CHANCE.integers(12, 60, (len(corners), 2))], 1).astype(float)
        near = np.repeat(known, CHANCE.integers(0, 3, len(known)), 0)
        nothing = np.full((CHANCE.integers(0, 2), 4), (0, 0, 20, 20))
        boxes = np.concatenate([near + CHANCE.normal(0, 5, near.shape), nothing])
        scores = CHANCE.integers(1, 20, len(boxes)) / 20
        order = np.argsort(-scores, kind="stable")
        ignored = np.flatnonzero(CHANCE.random(len(known)) < 0.25)
        found.append(Found(photo_of(known, ignored), faces_of(boxes.reshape(-1, 4)[order], scores[order])))
    return found


def overlap(one, other, extra):
    wide = min(one[2], other[2]) - max(one[0], other[0]) + extra
    high = min(one[3], other[3]) - max(one[1], other[1]) + extra
    shared = max(wide, 0) * max(high, 0)
    sizes = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (one, other)]
    return shared / (sum(sizes) - shared)


def plain_wider(found, counted):
    """The loops of `evaluation.m`, line for line."""
    every = [score for each in found for score in each.faces.scores.astype(float)]
    low, high = min(every), max(every)
    proposals, recalled = np.zeros(1000), np.zeros(1000)
    for each, mine in zip(found, counted, strict=True):
        if not len(mine) or not len(each.faces.scores):
            continue
        recall_list, proposal_list, pred_recall = np.zeros(len(mine)), np.ones(len(each.faces.scores)), []
        for number, box in enumerate(each.faces.boxes.astype(float)):
            shares = [overlap(box, known, 1) for known in each.photo.boxes.astype(float)]
            best = int(np.argmax(shares))
            if shares[best] >= 0.5:
                if not mine[best]:
                    recall_list[best] = -1
                    proposal_list[number] = -1
                elif recall_list[best] == 0:
                    recall_list[best] = 1
            pred_recall.append((recall_list == 1).sum())
        normal = (each.faces.scores.astype(float) - low) / (high - low)
        for t in range(1000):
            index = np.flatnonzero(normal >= 1 - (t + 1) / 1000)
            if len(index):
                proposals[t] += (proposal_list[: index[-1] + 1] == 1).sum()
                recalled[t] += pred_recall[index[-1]]
    recall = [0, *(recalled / sum(mine.sum() for mine in counted)), 1]
    precision = [0, *(r / p if p else 0 for r, p in zip(recalled, proposals, strict=True)), 0]
    for at in range(1000, -1, -1):
        precision[at] = max(precision[at], precision[at + 1])
    return sum((recall[at] - recall[at - 1]) * precision[at] for at in range(1, 1002))


def test_widers_precision_is_that_of_the_authors_loops():
    for _ in range(5):
        found = problem()
        counted = [~each.photo.ignored for each in found]
        assert wider_precision(found, counted) == pytest.approx(plain_wider(found, counted), abs=1e-12)
    assert np.isnan(wider_precision(found, [mine & False for mine in counted]))


def test_each_face_is_found_once_and_ignored_ones_count_neither_way():
    photo = photo_of([[0, 0, 20, 20], [100, 0, 120, 20], [200, 0, 300, 100]], ignored=[2])
    known, nobody = (photo.boxes, photo.ignored), (np.empty((0, 4)), np.empty(0, bool))
    boxes = np.array([[1, 1, 20, 20], [0, 0, 20, 20], [60, 0, 80, 20], [210, 10, 240, 40], [205, 0, 300, 100]])
    answer = match(boxes, np.array([0.5, 0.9, 0.8, 0.7, 0.6]), *known)
    assert answer.tolist() == [WRONG, 0, WRONG, NEITHER, NEITHER]
    assert match(np.empty((0, 4)), np.empty(0), *known).shape == (0,)
    assert match(boxes[:1], np.array([0.5]), *nobody).tolist() == [WRONG]


def test_recall_and_precision_are_those_of_counting():
    found = problem(12)
    matches = match_all(found)
    curve = curve_of(matches)
    points = []
    for score in sorted({float(value) for value in matches.scores}, reverse=True):
        sure = matches.face[matches.scores >= score]
        points.append((score, (sure >= 0).sum(), (sure == WRONG).sum()))
    assert curve.scores.tolist() == [point[0] for point in points]
    assert curve.right.tolist() == [point[1] for point in points]
    assert curve.wrong.tolist() == [point[2] for point in points]
    total = sum((~each.photo.ignored).sum() for each in found)
    plain, before = 0.0, 0
    for at, (_, right, _) in enumerate(points):
        plain += (right - before) / total * max(r / max(1, r + w) for _, r, w in points[at:])
        before = right
    assert average_precision(curve) == pytest.approx(plain, abs=1e-12)
    for allowed in (0.1, 0.4, 3):
        assert curve.recall(allowed) == max([r for _, r, w in points if w <= allowed * 12], default=0) / total
    assert curve_of(match_all([Found(photo_of([]), faces_of([], []))])).threshold(1.0) is None


def test_errors_of_points_are_distances_over_the_width():
    known = CHANCE.uniform(0, 40, (3, 5, 2)).astype(np.float32)
    known[2] = np.nan
    boxes = [[0, 0, 40, 50], [100, 0, 180, 100], [300, 0, 340, 50]]
    seen = known + CHANCE.normal(0, 2, known.shape).astype(np.float32)
    found = [Found(photo_of(boxes, points=known), faces_of(boxes, [0.9, 0.8, 0.7], seen))]
    errors = point_errors(found, match_all(found))
    distances = np.hypot(*(seen - known)[:2].astype(float).transpose(2, 0, 1)) / np.array([[40], [80]])
    assert errors.faces == 2
    assert errors.mean == pytest.approx(distances.mean())
    assert list(errors.points.values()) == pytest.approx(distances.mean(0))
    assert errors.within[0.05] == (distances.mean(1) < 0.05).mean()
    assert point_errors(found, match_all([found[0]._replace(faces=faces_of([], []))])) is None


ELLIPSE = (60.0, 40.0, 1.2, 100.0, 90.0)


def test_overlaps_with_ellipses_are_those_of_counted_pixels():
    boxes = np.array([[40, 20, 150, 160], [90, 80, 110, 100], [0, 0, 30, 30]], np.float32)
    y, x = (np.mgrid[:1000, :1000] + 0.5) / 5
    major, minor, angle, cx, cy = ELLIPSE
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    inside = (along / major) ** 2 + (across / minor) ** 2 <= 1
    for (left, top, right, bottom), found in zip(
        boxes, ellipse_overlaps(boxes, np.array([ELLIPSE]))[:, 0], strict=True
    ):
        box = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        assert found == pytest.approx((box & inside).sum() / (box | inside).sum(), abs=4e-3)


def test_fddbs_score_pairs_boxes_and_ellipses_one_to_one():
    ellipses = [np.array([[20, 15, 1.5, x, 40] for x in (40.0, 62.0, 140.0)]), np.empty((0, 5))]
    boxes = np.array([[24, 20, 58, 60], [45, 20, 78, 60], [30, 20, 64, 60], [130, 0, 139, 20]], np.float32)
    found = [
        Found(photo_of([]), faces_of(boxes, [0.9, 0.8, 0.7, 0.6])),
        Found(photo_of([]), faces_of(boxes[:1], [0.7])),
    ]
    curve = discrete_curve(found, ellipses)
    shares = ellipse_overlaps(boxes, ellipses[0])
    plain = []
    for score, count in ((0.9, 1), (0.8, 2), (0.7, 3), (0.6, 4)):
        rows = itertools.permutations(range(max(count, 3)), 3)
        wide = np.vstack([shares[:count], np.zeros((max(0, 3 - count), 3))])
        best = max(rows, key=lambda row: sum(wide[at, face] for face, at in enumerate(row)))
        right = sum(wide[at, face] > 0.5 for face, at in enumerate(best))
        plain.append((right, count + (score <= 0.7) - right))
    assert list(zip(curve.right.tolist(), curve.wrong.tolist(), strict=True)) == plain
    assert (curve.faces, curve.photos) == (3, 2)


def write_fddb(root):
    put(root / "originalPics", "2002/a.jpg", "2002/b.jpg", size=(200, 240))
    row = " ".join(map(str, ELLIPSE))
    text(root / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt", "2002/a", "1", f"{row}  1")
    text(root / "FDDB-folds" / "FDDB-fold-02-ellipseList.txt", "2002/b", "2", f"{row}  1", "9 9 0 50 50 1")


def test_fddb_is_one_set_of_all_folds_with_boxes_around_its_ellipses(tmp_path):
    write_fddb(tmp_path)
    faces = open_faces(tmp_path)
    assert [photo.name for photo in faces.photos] == ["2002/a.jpg", "2002/b.jpg"]
    assert [len(each) for each in faces.ellipses] == [1, 2]
    angle = np.linspace(0, 2 * np.pi, 100_000)
    major, minor, turn, x, y = ELLIPSE
    rim = np.array([major * np.cos(angle), minor * np.sin(angle)])
    rim = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ rim + [[x], [y]]
    assert np.allclose(faces.photos[0].boxes[0], [*rim.min(1), *rim.max(1)], atol=1e-3)
    fold = tmp_path / "FDDB-folds" / "FDDB-fold-02-ellipseList.txt"
    assert len(open_faces(fold).photos) == 1
    fold.write_text("2002/b\n2\n1 2 3 4 5 1\n")
    with pytest.raises(UserError, match=r"ends before all faces of 2002/b\.jpg"):
        open_faces(tmp_path)


def cells(values):
    made = np.empty((len(values), 1), object)
    for number, value in enumerate(values):
        made[number, 0] = value
    return made


def write_subsets(root, **lists):
    """`lists`: by subset for each of three photos the numbers of the faces that count, from 1."""
    root.mkdir(parents=True, exist_ok=True)
    names = {"event_list": cells(["0--Parade", "1--Car"]), "file_list": cells([cells(["a", "b"]), cells(["c"])])}
    savemat(root / "wider_face_val.mat", names)
    for name, (a, b, c) in lists.items():
        numbers = [np.array(each, np.uint8).reshape(-1, 1) for each in (a, b, c)]
        listed = cells([cells(numbers[:2]), cells(numbers[2:])])
        savemat(root / f"wider_{name}_val.mat", {"gt_list": listed}, do_compression=name != "easy")


def test_subsets_are_those_of_the_lists_beside_the_set(tmp_path):
    write_wider(tmp_path, *WIDER)
    faces = open_faces(tmp_path)
    assert read_subsets(faces) == {}
    write_subsets(tmp_path / "ground_truth", easy=([1], [], []), medium=([], [], []), hard=([1], [], [1, 3]))
    found = [Found(photo, faces_of([], [])) for photo in faces.photos]
    counted = counted_faces(found, read_subsets(faces))
    assert [mine.tolist() for mine in counted["easy"]] == [[True], [], [False] * 3]
    assert [mine.tolist() for mine in counted["hard"]] == [[True], [], [True, False, True]]
    by_size = counted_faces(found, {})
    assert [mine.tolist() for mine in by_size["small, 10 to 50 px"]] == [[True], [], [True, False, False]]


def test_subsets_of_another_set_or_in_part_are_refused(tmp_path):
    write_wider(tmp_path, *WIDER)
    faces = open_faces(tmp_path)
    lists = tmp_path / "ground_truth"
    write_subsets(lists, easy=([2], [], []))
    with pytest.raises(UserError, match=r"wider_medium_val\.mat: not there, but wider_easy_val\.mat is"):
        read_subsets(faces)
    write_subsets(lists, medium=([], [], []), hard=([], [], []))
    with pytest.raises(UserError, match=r"a face of '0--Parade/a\.jpg' is not in the list"):
        read_subsets(faces)
    savemat(lists / "wider_easy_val.mat", {"gt_list": cells([np.zeros((1, 1))])})
    with pytest.raises(UserError, match="do not fit each other"):
        read_subsets(faces)
    savemat(lists / "wider_easy_val.mat", {"other": np.zeros((1, 1))})
    with pytest.raises(UserError, match="no cells 'gt_list'"):
        read_subsets(faces)


def deep(levels):
    """The body of a cell in a cell in a cell."""
    body = b""
    for _ in range(levels):
        head = np.array([6, 8, 1, 0, 5, 8, 1, 1, 1, 0], "<i4").tobytes()
        body = head + np.array([14, len(body)], "<i4").tobytes() + body
    return body


def mat_of(content, compress=False):
    if compress:
        content = zlib.compress(content)
    kind = 15 if compress else 14
    return b"MATLAB".ljust(124) + b"\x00\x01IM" + np.array([kind, len(content)], "<i4").tobytes() + content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04" + bytes(200), "not a MATLAB file of version 5"),
        (mat_of(deep(3000)), "cells more than 4 deep"),
        (mat_of(bytes(65 << 20), compress=True), "bytes when unpacked"),
        (mat_of(b"damaged" * 20, compress=False)[:150], "cut off"),
        (mat_of(bytes(64)), "damaged"),
        (
            mat_of(zlib.compress(bytes(64))[:-30] + bytes(9), compress=False).replace(b"\x0e", b"\x0f", 1),
            "damaged",
        ),
    ],
)
def test_a_list_of_a_subset_that_is_no_such_file_is_refused(tmp_path, data, message):
    path = tmp_path / "wider_easy_val.mat"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_mat(path)


class Remembering:
    """A detector that knows the answers, a little off, and sees a face in the corner of each photo."""

    name, digest = "remembering", "0" * 64

    def __init__(self, photos):
        self.answers = iter(photos)

    def detect(self, images):
        photos = [next(self.answers) for _ in images]
        corner = np.array([[0, 0, 12, 12]], np.float32)
        return [
            faces_of(
                np.concatenate([photo.boxes + 0.5, corner]),
                [*np.linspace(0.95, 0.9, len(photo.boxes)), 0.3],
                np.concatenate([photo.landmarks + 1, np.full((1, 5, 2), 3, np.float32)]),
            )
            for photo in photos
        ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw_faces(folder, PhotoSpec(120, 90, 30), 6, 1)
    return folder


def evaluate(monkeypatch, folder, *arguments, photos=None):
    known = photos if photos is not None else open_faces(folder).photos
    monkeypatch.setattr("data_prep.detectors.open.open_detector", lambda *_, **__: Remembering(known))
    return CliRunner().invoke(app, ["eval-detector", str(folder), *map(str, arguments)], catch_exceptions=True)


@pytest.mark.job  # curves and a page
def test_the_command_writes_figures_and_a_page_with_false_alarms(tmp_path, monkeypatch, drawn):
    result = evaluate(
        monkeypatch, drawn, "--json", tmp_path / "new" / "f.json", "--report", tmp_path / "new" / "f.html"
    )
    assert result.exit_code == 0, result.output
    (figures,) = json.loads((tmp_path / "new" / "f.json").read_text())
    faces = sum(len(photo.boxes) for photo in open_faces(drawn).photos)
    assert figures["photos"] == 6
    assert figures["faces"] == faces
    assert figures["recall_at_false_alarms_per_photo"]["0.01"] == 1
    assert figures["average_precision"] == 1
    assert figures["points"]["faces"] == faces
    page = (tmp_path / "new" / "f.html").read_text()
    assert len(re.findall("0.300: photos/0000", page)) == 3 * 6  # each in the picture's text, title and caption
    assert "Misses" not in page
    assert "Recall %" in result.output


def test_the_surroundings_of_a_box_far_larger_than_its_photo_are_shown():
    corner, scale = np.array([-5e5, -5e5]), 200 / 2e6
    assert _cut(np.zeros((90, 120, 3), np.uint8), corner, scale).shape == (200, 200, 3)


def test_wider_and_fddb_have_figures_of_their_own(tmp_path, monkeypatch):
    write_wider(tmp_path / "wider", "0--Parade/a.jpg", "1", f"1 1 10 10 {FLAGS}")
    write_fddb(tmp_path / "fddb")
    for name, expected in (("wider", "small, 10 to 50 px"), ("fddb", "FDDB, discrete score")):
        result = evaluate(monkeypatch, tmp_path / name, "--json", tmp_path / "f.json")
        assert result.exit_code == 0, result.output
        assert expected in result.output
        (figures,) = json.loads((tmp_path / "f.json").read_text())
        assert figures[name] is not None
        assert figures["points"] is None


def test_photos_that_cannot_be_read_are_left_out_and_the_command_fails_at_the_end(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    draw_faces(folder, PhotoSpec(64, 48, 20), 4, 1)
    photos = list(open_faces(folder).photos)
    photos[1].path.write_bytes(b"no picture")
    readable = [photos[0], *photos[2:]]
    result = evaluate(monkeypatch, folder, "--json", tmp_path / "f.json", photos=readable)
    assert isinstance(result.exception, WorkError)
    assert "1 of 4 photos could not be read" in str(result.exception)
    (figures,) = json.loads((tmp_path / "f.json").read_text())
    assert figures["photos"] == 3
    assert figures["unreadable"] == [{"photo": photos[1].name, "reason": "not a picture"}]
    for photo in photos:
        photo.path.write_bytes(b"no picture")
    assert "none of its 4 photos can be read" in str(evaluate(monkeypatch, folder, photos=[]).exception)
