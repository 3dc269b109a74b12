import json
import pickle
import shutil

import cv2
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.glyphs.build import GlyphOptions, build_glyphs
from data_prep.glyphs.fonts import default_font_dirs, find_fonts
from data_prep.glyphs.nuisance import PictureSpec, picture
from data_prep.glyphs.render import EM_PX, Renderer
from data_prep.glyphs.survey import FontSurvey, find_conflicts
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from tests.launch.recipes import headcount_here

OPTIONS = {
    "image_size": 32,
    "identities": 60,
    "views": 4,
    "heldout_identities": 20,
    "pairs": 40,
    "shard_samples": 100,
}
# Of three families: a third of all characters that the fonts of the dependency have, each of which is drawn.
FONTS = (
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Only with fonts that are a dependency, so that the test sees the same ones everywhere."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in FONTS:
        shutil.copy(default_font_dirs()[0] / name, folder)
    return OPTIONS | {"font_dirs": (folder,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory, options):
    output = tmp_path_factory.mktemp("glyphs") / "set"
    return output, build_glyphs(GlyphOptions(output=output, **options))


def records(directory):
    """Samples as plain webdataset reads them."""
    shards = sorted(str(path) for path in directory.glob("*.tar"))
    return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))


def test_plain_webdataset_reads_what_the_manifest_promises(made):
    output, stats = made
    manifest = load_manifest(output / "train")
    samples = records(output / "train")
    assert len(samples) == manifest.samples == stats["train"]["pictures"] == 240
    assert {int(sample["cls"]) for sample in samples} == set(range(60))
    image = cv2.imdecode(np.frombuffer(samples[0]["jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (32, 32, 3)
    names = pq.read_table(output / "train" / "identities.parquet").to_pydict()
    assert names["count"] == [4] * 60
    record = json.loads(samples[0]["json"])
    assert names["name"][int(samples[0]["cls"])].endswith(record["char"])


def test_characters_and_font_families_of_the_two_parts_are_disjoint(made, options):
    output, stats = made
    train = [json.loads(sample["json"]) for sample in records(output / "train")]
    heldout = [json.loads(sample["json"]) for sample in records(output / "heldout")]
    assert not {r["char"] for r in train} & {r["char"] for r in heldout}
    fonts = {font.name: font.family for font in find_fonts(options["font_dirs"]).fonts}
    families = {fonts[r["font"]] for r in heldout}
    assert families == set(stats["heldout"]["families"])
    assert not {fonts[r["font"]] for r in train} & families


def test_each_heldout_identity_has_one_gallery_picture_and_probes(made):
    output, _ = made
    roles: dict[str, list[str]] = {}
    for sample in records(output / "heldout"):
        roles.setdefault(sample["cls"], []).append(json.loads(sample["json"])["role"])
    assert len(roles) == 20
    for found in roles.values():
        assert found.count("gallery") == 1
        assert found.count("probe") >= 2


def test_the_verification_set_is_balanced_in_every_fold(made):
    output, _ = made
    images, same = pickle.loads((output / "heldout" / "verification.bin").read_bytes())
    assert len(images) == 80
    assert [sum(same[i : i + 4]) for i in range(0, 40, 4)] == [2] * 10
    assert all(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) is not None for image in images)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(made, options, tmp_path):
    output, _ = made
    build_glyphs(GlyphOptions(output=tmp_path / "again", workers=2, **options))
    names = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in names:
        assert (output / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_seed_chooses_and_draws_otherwise(made, options, tmp_path):
    output, _ = made
    build_glyphs(GlyphOptions(output=tmp_path / "other", seed=1, **options))
    assert load_manifest(output / "train").digest != load_manifest(tmp_path / "other" / "train").digest


def test_identical_drawings_are_one_conflict_even_through_a_third_character():
    surveys = [FontSurvey(looks={65: b"a", 913: b"a", 66: b"b"}), FontSurvey(looks={913: b"x", 1040: b"x", 66: b"b"})]
    conflicts = find_conflicts(surveys)
    assert [(c.kept, c.dropped) for c in conflicts] == [(65, (913, 1040))]


def test_dropped_twins_occur_in_neither_part(made):
    output, stats = made
    dropped = {
        character
        for line in (output / "conflicts.jsonl").read_text().splitlines()
        for character in json.loads(line)["dropped"]
    }
    assert len(dropped) == stats["conflicts"]["dropped"] > 100
    shown = {json.loads(s["json"])["char"] for part in ("train", "heldout") for s in records(output / part)}
    assert not shown & dropped


def test_difficulty_zero_is_clean_and_more_is_noisier(options):
    fonts = find_fonts(options["font_dirs"]).fonts
    mask = Renderer(fonts).mask(0, ord("R"))

    def levels(difficulty, view):
        data = picture(mask, EM_PX, PictureSpec(64, difficulty, 95, 0), (ord("R"), 0, view))
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(float)

    assert np.abs(levels(0, 1) - levels(0, 2)).max() == 0
    assert np.abs(levels(0.5, 1) - levels(0.5, 2)).mean() > 1
    assert levels(0, 1)[0, 0].tolist() == [255, 255, 255]


def test_mistakes_are_one_message_with_the_way_out(tmp_path):
    (tmp_path / "empty").mkdir()
    done = headcount_here("prep", "glyphs", tmp_path / "out", "--fonts", tmp_path / "empty")
    assert done.returncode == 2
    assert "no usable font in" in done.stderr
    assert "make fonts" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    done = headcount_here("prep", "glyphs", tmp_path / "full")
    assert (done.returncode, "exists and is not empty" in done.stderr) == (2, True)

    done = headcount_here("prep", "glyphs", "/proc/out")
    assert (done.returncode, "cannot write there" in done.stderr) == (2, True)


def test_fonts_of_a_dependency_alone_suffice(tmp_path):
    search = find_fonts([default_font_dirs()[0]])
    assert search.counts["used"] >= 12
    assert not any("LastResort" in str(font.path) for font in search.fonts)
    assert default_font_dirs()[0].is_relative_to(matplotlib.get_data_path())


def test_a_set_needs_two_families(tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(default_font_dirs()[0] / FONTS[0], tmp_path / "one" / "a.ttf")
    with pytest.raises(UserError, match="too few to hold a family out"):
        build_glyphs(GlyphOptions(output=tmp_path / "out", font_dirs=(tmp_path / "one",)))
