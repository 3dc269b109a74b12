"""`headcount embed` and `headcount search`, as a user runs them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from data_prep.align_transform import Align
from data_prep.decode import decode
from dist_train.data.aligner import Aligner
from dist_train.embed.gallery import Gallery
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.embeddings import embed_pictures
from dist_train.evaluate.models import load_model
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.digest import sha256_of
from launch.cli import app
from launch.embed.crops import AlignedFace
from launch.embed.open import open_origin
from launch.embed.photos import matched_pictures
from tests.data.sets import encode, make_set, picture, sample, write_tar
from tests.embed.models import DIM, SIZE, write_model, write_photos
from tests.evaluate.figures import figures, point, write_figures
from tests.prep.recs import write_rec
from tests.prep.test_mtcnn import portrait

SHARED = Path(__file__).parents[3] / "shared" / "faces"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny):
    """Photos, their embeddings and a gallery of them."""
    home = tmp_path_factory.mktemp("built")
    write_photos(home / "photos")
    (home / "photos" / "notes.txt").write_text("hello")
    told = run("embed", tiny, home / "photos", home / "faces.parquet")
    assert told.startswith(f"{home / 'faces.parquet'}: 13 embeddings; left out: 1 not a picture, each with its reason")
    run("search", "build", home / "faces.parquet", home / "gallery")
    return home


def two_faces():
    """A picture of a large and a small face."""
    canvas = np.full((300, 440, 3), 90, np.uint8)
    for scale, left in ((0.5, 0), (0.3, 270)):
        photo = portrait(scale)
        canvas[: len(photo), left : left + photo.shape[1]] = photo
    return canvas


def test_photos_of_a_folder_are_found_again_by_name(built, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = pq.read_table(built / "faces.parquet")
    assert set(rows["identity"].to_pylist()) == {"person 0", "person 1", "person 2", None}
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    asked = built / "photos" / "person 1" / "2.png"
    told = run("search", "query", built / "gallery", asked, "--model", tiny, "-k", 3).splitlines()
    assert told[0] == f"  1  1.0000  person 1  {asked}"
    assert len(told) == 4
    assert told[-1] == "look at matches.png"
    drawn = cv2.imread(str(tmp_path / "matches.png"))
    assert drawn.std() > 20


def test_the_result_is_drawn_even_where_photos_are_gone(tmp_path, tiny):
    write_photos(tmp_path / "photos", people=1, each=2)
    run("embed", tiny, tmp_path / "photos", tmp_path / "faces.npy")
    run("search", "build", tmp_path / "faces.npy", tmp_path / "gallery")
    (tmp_path / "photos" / "person 0" / "0.png").unlink()
    asked = tmp_path / "photos" / "alone.png"
    found = tmp_path / "found.png"
    told = run("search", "query", tmp_path / "gallery", asked, "--model", tiny, "--out", found)
    assert told.count("person 0") == 4  # two matches, each with its name and its path
    assert cv2.imread(str(found)).std() > 20


def test_embeddings_of_a_set_are_those_of_the_evaluation(tmp_path, tiny):
    make_set(tmp_path / "set", [5, 6], size=SIZE)
    names = pa.table({"label": list(range(5)), "name": [f"name {n}" for n in range(5)], "count": [1] * 5})
    pq.write_table(names, tmp_path / "set" / "identities.parquet")
    run("embed", tiny, tmp_path / "set", tmp_path / "out.parquet", "--batch-size", 4)
    rows = pq.read_table(tmp_path / "out.parquet")
    with StoredSet(tmp_path / "set") as stored:
        model = load_model(tiny, torch.device("cpu"))
        wanted = embed_pictures(model.embed, decoding(stored.read, SIZE, "set"), len(stored), 4)
    assert np.allclose(np.stack(rows["embedding"].to_pylist()), wanted.features, atol=1e-6)
    assert rows["label"].to_pylist() == [n % 5 for n in range(11)]
    assert rows["identity"].to_pylist() == [f"name {n % 5}" for n in range(11)]
    assert rows["path"].to_pylist()[5] == "x-000001.tar:00000005.jpg"
    run("search", "build", tmp_path / "out.parquet", tmp_path / "gallery")
    cv2.imwrite(str(tmp_path / "q.png"), picture(7, SIZE)[:, :, ::-1])
    told = run(
        "search", "query", tmp_path / "gallery", tmp_path / "q.png", "--model", tiny, "--out", tmp_path / "m.png"
    )
    assert told.splitlines()[0].endswith("name 2  " + str(tmp_path / "set" / "x-000001.tar:00000007.jpg"))


def test_a_set_that_another_aligned_is_told_of(tmp_path, tiny, monkeypatch, caplog):
    scrfd, mtcnn = Aligner("scrfd", "b" * 64), Aligner("mtcnn", "a" * 64)
    replace(make_set(tmp_path / "set", [2], size=SIZE), aligner=scrfd).save(tmp_path / "set")
    trained = replace(load_model(tiny, torch.device("cpu")), aligner=lambda: mtcnn)
    monkeypatch.setattr("dist_train.evaluate.models.load_model", lambda *_: trained)
    run("embed", tiny, tmp_path / "set", tmp_path / "out.npy")
    assert "set was aligned by scrfd (bbbbbbbbbbbb), the model was trained on faces aligned by mtcnn" in caplog.text


def test_shards_of_others_are_read_with_the_labels_and_scores_that_they_have(tmp_path, tiny):
    def described(number, record):
        return [
            (f"{number:05d}.png", encode(picture(number), ".png")),
            (f"{number:05d}.json", json.dumps(record).encode()),
        ]

    write_tar(tmp_path / "00000.tar", [described(1, {"label": 4, "score": 0.75}), described(2, {"caption": "x"})])
    write_tar(
        tmp_path / "00001.tar", [sample(3, 9), [("bo/4.jpg", encode(picture(4)))], [("5.txt", b"x")]], index=False
    )
    write_tar(
        tmp_path / "00002.tar", [[("6.jpg", b"no picture")], [("7.webp", encode(picture(7), ".webp"))]], index=False
    )
    told = run("embed", tiny, tmp_path, tmp_path / "out.parquet")
    assert "5 embeddings; left out: 1 no picture, 1 not a picture" in told
    rows = pq.read_table(tmp_path / "out.parquet").select(["path", "label", "identity", "score"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("00000.tar:00001.png", 4, None, 0.75),
        ("00000.tar:00002.png", None, None, None),
        ("00001.tar:00000003.jpg", 9, None, None),
        ("00001.tar:bo/4.jpg", None, "bo", None),
        ("00002.tar:7.webp", None, None, None),
    ]
    assert not list(tmp_path.glob("manifest*")), "shards of others are left as they are"


def test_one_photo_and_a_table_are_sources_too(tmp_path, tiny):
    photos = write_photos(tmp_path / "photos", people=1, each=1)
    assert ": 1 embedding\n" in run("embed", tiny, photos / "alone.png", tmp_path / "one.npy")
    (tmp_path / "people.csv").write_text("path,identity\nphotos/alone.png,ada\nphotos/none.png,bo\n")
    assert "1 embedding; left out: 1 vanished" in run(
        "embed", tiny, tmp_path / "people.csv", tmp_path / "table.parquet"
    )
    assert pq.read_table(tmp_path / "table.parquet")["identity"].to_pylist() == ["ada"]


def test_a_picture_of_nobody_known_is_embedded_without_an_identity_and_a_person_named_as_a_dash_keeps_the_name(
    tmp_path, tiny
):
    write_photos(tmp_path / "photos", people=1, each=1)
    (tmp_path / "people.csv").write_text("path,identity\nphotos/alone.png,-\nphotos/person 0/0.png,\n")
    assert ": 2 embeddings\n" in run("embed", tiny, tmp_path / "people.csv", tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet")["identity"].to_pylist() == ["-", None]


@pytest.mark.parametrize("kind", ["folder", "tar", "rec"])
def test_matches_are_read_again_out_of_every_kind_of_source(tmp_path, tiny, kind):
    source = tmp_path / "source"
    encoded = {label: encode(picture(label, SIZE), ".png") for label in (3, 8)}
    if kind == "rec":
        write_rec(source, [(float(label), data) for label, data in encoded.items()])
    elif kind == "tar":
        source = tmp_path / "a.tar"
        write_tar(source, [[(f"{n}.png", data), (f"{n}.cls", b"%d" % n)] for n, data in encoded.items()])
    else:
        source.mkdir()
        for label, data in encoded.items():
            (source / f"picture #{label}.png").write_bytes(data)
    run("embed", tiny, source, tmp_path / "out.parquet")
    run("search", "build", tmp_path / "out.parquet", tmp_path / "gallery")
    gallery = Gallery(tmp_path / "gallery")
    rows = pq.read_table(tmp_path / "out.parquet")
    for row, label in enumerate((3, 8)):
        wanted = torch.tensor([rows["embedding"][row].as_py()])
        (match,) = gallery.search(wanted, 1)[0]
        assert match.label == (None if kind == "folder" else label)
        (shown,) = matched_pictures([match], gallery.sources, SIZE)
        assert np.array_equal(shown, picture(label, SIZE))


@pytest.mark.parametrize("kind", ["tar", "rec"])
def test_photos_are_gone_where_another_kind_of_source_came_to_lie(tmp_path, tiny, kind):
    photos = write_photos(tmp_path / "photos", people=1, each=1)
    run("embed", tiny, photos, tmp_path / "e.parquet")
    run("search", "build", tmp_path / "e.parquet", tmp_path / "gallery")
    if kind == "tar":
        write_tar(photos / "later.tar", [[("1.png", encode(picture(1, SIZE), ".png"))]])
    else:
        write_rec(photos, [(1.0, encode(picture(1, SIZE), ".png"))])
    gallery = Gallery(tmp_path / "gallery")
    (matches,) = gallery.search(torch.ones(1, DIM), 2)
    assert matched_pictures(matches, gallery.sources, SIZE) == [None, None]
    asked = ("search", "query", tmp_path / "gallery", photos / "alone.png", "--model", tiny)
    assert "person 0" in run(*asked, "--out", tmp_path / "m.png")


def test_a_source_is_opened_once_for_its_pictures_and_its_names_are_not_read(tmp_path, tiny, monkeypatch):
    make_set(tmp_path / "set", [3, 3], size=SIZE)
    run("embed", tiny, tmp_path / "set", tmp_path / "e.parquet")
    run("search", "build", tmp_path / "e.parquet", tmp_path / "gallery")
    (tmp_path / "set" / "identities.parquet").write_bytes(b"damaged")
    opened = []
    monkeypatch.setattr("launch.embed.photos.open_origin", lambda *a: opened.append(a) or open_origin(*a))
    gallery = Gallery(tmp_path / "gallery")
    (matches,) = gallery.search(torch.ones(1, DIM), 6)
    shown = matched_pictures(matches, gallery.sources, SIZE)
    assert [each.shape for each in shown] == [(SIZE, SIZE, 3)] * 6
    assert len(opened) == 1
    assert matched_pictures(matches, gallery.sources, SIZE, limit_s=0) == [None] * 6


def test_a_photo_whose_name_is_no_text_is_embedded(tmp_path, tiny):
    (tmp_path / "photos").mkdir()
    name = os.path.join(os.fsencode(tmp_path / "photos"), b"\xff.png")
    with open(name, "wb") as file:
        file.write(encode(picture(1, SIZE), ".png"))
    run("embed", tiny, tmp_path / "photos", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["path"].to_pylist() == ["\\xff.png"]


def test_faces_are_aligned_on_the_way_as_in_preparation(tmp_path):
    model = write_model(tmp_path / "m.onnx", size=112)
    photos = tmp_path / "photos"
    (photos / "grace").mkdir(parents=True)
    grace = encode(portrait(0.5))
    (photos / "grace" / "1.jpg").write_bytes(grace)
    (photos / "two.png").write_bytes(encode(two_faces(), ".png"))
    (photos / "grey.png").write_bytes(encode(np.full((80, 80, 3), 90, np.uint8), ".png"))
    told = run("embed", model, photos, tmp_path / "out.parquet", "--align")
    assert "2 embeddings; left out: 1 no face" in told
    assert told.splitlines()[1:] == ["  grey.png: no face: 80x80 pixels"]
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["identity"], row["faces"]) for row in rows] == [(None, 2), ("grace", 1)]
    assert all(row["score"] > 0.99 for row in rows)
    (made,) = Align(image_size=112).open()([grace])
    (cut,) = AlignedFace(112)([grace])
    assert np.array_equal(cut.pixels, decode(made[0].data).pixels)
    run("search", "build", tmp_path / "out.parquet", tmp_path / "gallery")
    gallery = Gallery(tmp_path / "gallery")
    (match,) = gallery.search(torch.tensor([rows[1]["embedding"]]), 1)[0]
    (again,) = matched_pictures([match], gallery.sources, 112)
    assert np.abs(again.astype(int) - cut.pixels).mean() < 4, "but for the JPEG in between, the face that was embedded"
    query = ("search", "query", tmp_path / "gallery")
    options = ("--model", model, "--out", tmp_path / "m.png")
    told = run(*query, photos / "two.png", *options).splitlines()
    assert "2 faces; the main one is taken, " in told[0]
    assert "(or --face largest, surest, central, or a cut-out photo)" in told[0]
    assert told[1].split()[:2] == ["1", "1.0000"]
    with pytest.raises(UserError, match=r"grey\.png: no face: 80x80 pixels; a smaller --min-face"):
        run(*query, photos / "grey.png", *options)
    told = run(*query, photos / "grey.png", *options, "--no-align").splitlines()
    assert len(told) == 3, "two matches and where to look"


@pytest.mark.parametrize("rule", ["main", "largest", "surest", "central"])
def test_the_face_of_several_is_the_one_that_preparation_takes(rule):
    canvas = np.full((260, 700, 3), 90, np.uint8)
    for scale, left in ((0.42, 0), (0.3, 250), (0.36, 480)):
        photo = portrait(scale)[:260]
        canvas[: len(photo), left : left + photo.shape[1]] = photo
    data = encode(canvas, ".png")
    ((crop,),) = Align(image_size=112, faces=rule).open()([data])
    (cut,) = AlignedFace(112, rule)([data])
    assert len(cut.found.scores) == crop.record["faces"] == 3
    assert np.array_equal(cut.pixels, decode(crop.data).pixels)
    assert np.allclose(cut.found.boxes[cut.taken], crop.record["box"], atol=0.01)
    if rule != "surest":
        assert (cut.found.boxes[cut.taken][0] < 200) == (rule == "largest"), "the large one is at the left border"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no photos of faces here: shared/faces")
def test_faces_that_the_reference_detector_found_are_embedded_and_the_others_rejected(tmp_path):
    reference = json.loads((SHARED / "reference.json").read_text())["images"]
    names = sorted(reference, key=lambda name: reference[name]["width"] * reference[name]["height"])[:6]
    crops = AlignedFace(112)([(SHARED / name).read_bytes() for name in names])
    assert [len(crop.found.scores) if hasattr(crop, "found") else 0 for crop in crops] == [
        len(reference[name]["faces"]) for name in names
    ]


def test_queries_with_another_model_or_without_a_photo_are_refused(built, tiny, tmp_path, monkeypatch):
    query = ("search", "query", built / "gallery")
    photo = built / "photos" / "alone.png"
    other = write_model(tmp_path / "other.onnx", scale=2.0)
    with pytest.raises(UserError, match=r"embedded with model tiny \(SHA-256 \w{12}\), --model is other \(\w{12}\)"):
        run(*query, photo, "--model", other)
    wider = write_model(tmp_path / "wider.onnx", cells=8)
    with pytest.raises(UserError, match=r"wider gives embeddings of 192 numbers, gallery .* holds 48"):
        run(*query, photo, "--model", wider)
    with pytest.raises(UserError, match=r"notes\.txt: not a picture"):
        run(*query, built / "photos" / "notes.txt", "--model", tiny)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.sources.base.MAX_FILE_BYTES", 10)
        with pytest.raises(UserError, match=r"alone\.png: \d+ bytes, expected at most 10"):
            run(*query, photo, "--model", tiny)
    with pytest.raises(UserError, match=r"none\.jpg: No such file"):
        run(*query, "none.jpg", "--model", tiny)
    with pytest.raises(UserError, match=r"model .*notes\.txt: expected a run directory"):
        run(*query, photo, "--model", built / "photos" / "notes.txt")
    with pytest.raises(WorkError, match="cannot be written"):
        run(*query, photo, "--model", tiny, "--out", tmp_path / "no" / "such" / "m.png")


def test_a_search_says_match_or_no_match_by_a_threshold_of_the_same_model(built, tiny, tmp_path):
    points = [point(1e-2, 0.25), point(1e-4, 0.99999, resolved=False)]
    measured = write_figures(tmp_path / "figures.json", figures(sha256_of(tiny), points))
    asked = ("search", "query", built / "gallery", built / "photos" / "person 1" / "2.png", "--model", tiny)
    asked += ("--out", tmp_path / "m.png")
    told = run(*asked, "-k", 13, "--fmr", "1e-4", "--calibration", measured).splitlines()
    assert told[0].startswith("  1  1.0000  match     person 1  ")
    assert all("  no match  " in line for line in told[1:13])
    assert told[13].startswith("threshold 1.0000: measured on visitors, where at most 0.0001 of 1,710 pairs of two")
    assert "13 pictures a stranger meets 0.0013 false matches on average (N x FMR), and finds" in told[14]
    assert "at least one in 0.13% of searches (FPIR)" in told[14]
    assert told[15].startswith("warning: 1,710 pairs of two identities are too few for an FMR of 0.0001: 30,000 are")
    told = run(*asked, "--fmr", "0.01", "--calibration", measured)
    assert told.count("  match  ") >= 1
    assert "in 12.25% of searches (FPIR)" in told
    assert "warning" not in told
    with pytest.raises(UserError, match=r"--calibration .*figures\.json: for which rate\? Give --fmr"):
        run(*asked, "--calibration", measured)
    with pytest.raises(UserError, match="model tiny states no thresholds; measure them, headcount eval MODEL"):
        run(*asked, "--fmr", "0.01")
    for key, value, message in (
        ("flip", False, "measured without the mirrored picture, gallery .* was embedded with it"),
        ("told", {"input": "0..255, rgb"}, r"measured with input 0\.\.255, rgb of the model, .* with nothing said"),
    ):
        write_figures(tmp_path / "other.json", {**figures(sha256_of(tiny), points), key: value})
        with pytest.raises(UserError, match=message):
            run(*asked, "--fmr", "0.01", "--calibration", tmp_path / "other.json")
    others = write_figures(tmp_path / "others.json", figures("0" * 64, points))
    with pytest.raises(UserError, match="tiny does not say which weights it was exported from"):
        run(*asked, "--fmr", "0.01", "--calibration", others)


def test_a_gallery_knows_how_its_model_was_given_pictures(built, tiny, tmp_path):
    said = ("--input-range", "0..255", "--input-color", "bgr")
    run("embed", tiny, built / "photos", tmp_path / "levels.npy", *said)
    with pytest.raises(UserError, match=r"model\.told was None, is|model\.told was .*, is None"):
        run("embed", tiny, built / "photos", tmp_path / "levels.npy")
    run("search", "build", tmp_path / "levels.npy", tmp_path / "gallery")
    photo = ("search", "query", tmp_path / "gallery", built / "photos" / "person 1" / "2.png", "--model", tiny)
    out = ("--out", tmp_path / "m.png")
    assert "1.0000" in run(*photo, *said, *out).splitlines()[0]
    with pytest.raises(UserError, match=r"embedded with input 0\.\.255, bgr of the model, .* with nothing said"):
        run(*photo, *out)
    with pytest.raises(UserError, match=r"not made in the same way: model\.told"):
        run("search", "build", tmp_path / "levels.npy", built / "faces.parquet", tmp_path / "both")


def test_embeddings_that_are_nearly_the_same_are_told_of(built, tiny, tmp_path, caplog):
    run("embed", tiny, built / "photos", tmp_path / "good.npy")
    assert "nearly the same" not in caplog.text
    run("embed", tiny, built / "photos", tmp_path / "far.npy", "--input-mean", "-100000", "--input-std", "1")
    assert "far.npy: pictures of different identities have nearly the same embedding" in caplog.text


def test_sources_that_are_none_are_named(tmp_path, tiny):
    with pytest.raises(UserError, match="not there; expected a photo, a folder"):
        run("embed", tiny, tmp_path / "none", tmp_path / "out.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing in it to embed"):
        run("embed", tiny, tmp_path / "empty", tmp_path / "out.npy")
    with pytest.raises(UserError, match="--device 'gpu'"):
        run("embed", tiny, tmp_path / "empty", tmp_path / "out.npy", "--device", "gpu")
    (tmp_path / "x.tar").write_bytes(b"hello" * 200)
    with pytest.raises(UserError, match=r"x\.tar: not an uncompressed tar"):
        run("embed", tiny, tmp_path / "x.tar", tmp_path / "out.npy")
