"""The aligner of a set: in its manifest, alone in a mixture, and known to the networks that are trained on it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.detectors.detector import SHIPPED, shipped_digest
from dist_train.checkpoint.store import Progress, read_progress, write_progress
from dist_train.data.aligner import Aligner, common_aligner, warn_of_aligner
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.manifest import load_manifest
from dist_train.data.sources import open_sources
from dist_train.errors import UserError
from launch.embed.aligner import check_aligner, open_detector_file, source_aligner, warn_of_set
from tests.data.sets import make_set

MTCNN, SCRFD = Aligner("mtcnn", "a" * 64), Aligner("scrfd", "b" * 64)


@pytest.fixture
def sets(tmp_path):
    """Paths of sets aligned by MTCNN, by SCRFD, and by who knows what."""

    def made(name, aligner):
        replace(make_set(tmp_path / name, [4]), aligner=aligner).save(tmp_path / name)
        return str(tmp_path / name)

    return made("mtcnn", MTCNN), made("scrfd", SCRFD), made("old", None)


def mixture(path, *others, **keys):
    return DataConfig(path=path, mix=[SourceConfig(path=other, weight=1) for other in others], **keys)


def test_a_manifest_tells_the_aligner_and_an_old_one_tells_none(sets, tmp_path):
    assert load_manifest(sets[0]).aligner == MTCNN
    assert load_manifest(sets[2]).aligner is None
    assert "aligner" not in json.loads((tmp_path / "old" / "manifest.json").read_text())
    assert load_manifest(sets[0]).digest == load_manifest(sets[2]).digest, "it says what is in the set"


@pytest.mark.parametrize(
    "value", ["mtcnn", {"name": "mtcnn"}, {"name": "", "sha256": "a" * 64}, {"name": "n" * 101, "sha256": "a" * 64}]
)
def test_a_damaged_aligner_is_refused(sets, tmp_path, value):
    path = tmp_path / "mtcnn" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "aligner": value}))
    with pytest.raises(UserError, match="aligner"):
        load_manifest(sets[0])


def test_sets_of_a_mixture_have_one_aligner_unless_more_are_accepted(sets, caplog):
    mtcnn, scrfd, old = sets
    with pytest.raises(UserError, match=r"mtcnn was aligned by mtcnn \(aaaaaaaaaaaa\), .*data\.any_aligner=true"):
        open_sources(mixture(mtcnn, scrfd))
    assert open_sources(mixture(mtcnn, scrfd, any_aligner=True)).manifest.aligner is None
    assert "by scrfd" in caplog.text
    assert open_sources(mixture(mtcnn, old)).manifest.aligner is None
    assert open_sources(mixture(scrfd)).manifest.aligner == SCRFD
    assert common_aligner({"a": SCRFD, "b": SCRFD}, "", accept=False) == SCRFD
    assert common_aligner({"a": None}, "", accept=False) is None


def test_a_checkpoint_tells_the_aligner_and_an_old_one_tells_none(tmp_path):
    progress = Progress(3, 30, 112, 5, "d")
    write_progress(tmp_path, progress)
    assert "aligner" not in (tmp_path / "progress.json").read_text()
    assert read_progress(tmp_path) == progress
    write_progress(tmp_path, replace(progress, aligner=SCRFD))
    assert read_progress(tmp_path).aligner == SCRFD


def test_text_of_a_file_gives_the_aligner_or_none():
    assert Aligner.of_text(SCRFD.to_text()) == SCRFD
    for text in ("", "scrfd", "b" * 64, f"{'b' * 64} \n", f"{'b' * 64} {'n' * 101}"):
        assert Aligner.of_text(text) is None


def test_a_set_that_another_aligned_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_aligner(MTCNN, "sets/a", MTCNN)
        warn_of_aligner(MTCNN, "sets/b", None)
        assert not caplog.records
        warn_of_aligner(MTCNN, "sets/c", SCRFD)
    assert "set sets/c was aligned by scrfd" in caplog.text


def test_photos_for_a_network_are_aligned_by_the_detector_that_it_knows(caplog, tmp_path):
    check_aligner(None, SCRFD, "", any_aligner=False)
    check_aligner(MTCNN, None, "", any_aligner=False)
    check_aligner(SCRFD, SCRFD, "", any_aligner=False)
    with pytest.raises(UserError, match=r"pictures are aligned by scrfd .*by mtcnn .*--detector FILE.*--any-aligner"):
        check_aligner(MTCNN, SCRFD, "pictures", any_aligner=False)
    check_aligner(MTCNN, SCRFD, "pictures", any_aligner=True)
    assert "by scrfd" in caplog.text
    with pytest.raises(UserError, match="add --align"):
        open_detector_file(tmp_path / "net.onnx", align=False)


@pytest.mark.parametrize(
    ("known", "way_out"),
    [
        (Aligner("landmarks", "c" * 64), "no --detector aligns so: give pictures .* without --align, or .*--any"),
        (Aligner("scrfd box 0.1", "b" * 64), "no --detector aligns so: give pictures .* without --align"),
        (Aligner(SHIPPED, shipped_digest()), "leave --detector out, or accept another: --any-aligner"),
    ],
)
def test_the_way_out_is_one_that_can_be_gone(known, way_out):
    with pytest.raises(UserError, match=way_out) as error:
        check_aligner(SCRFD, known, "pictures", any_aligner=False)
    assert "--detector FILE" not in str(error.value)


def test_two_tables_of_landmarks_may_be_of_one_detector():
    tables = {name: Aligner("landmarks", name * 64) for name in "cd"}
    with pytest.raises(UserError, match="accept it, which is right where one detector made both tables: --any"):
        common_aligner(tables, "--any", accept=False)
    with pytest.raises(UserError, match="accept it: --any"):
        common_aligner({"c": tables["c"], "s": SCRFD}, "--any", accept=False)


def test_a_set_that_counts_as_aligned_is_warned_of_where_another_aligned_it(sets, tmp_path, caplog):
    mtcnn, scrfd, old = sets
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "manifest.json").write_text("[]")
    for trained, source in ((None, scrfd), (MTCNN, mtcnn), (MTCNN, old), (MTCNN, tmp_path / "others")):
        warn_of_set(trained, Path(source))
    assert not caplog.records
    warn_of_set(MTCNN, Path(scrfd))
    warn_of_set(MTCNN, Path(scrfd) / "x-000000.tar")
    whole, tar = caplog.messages
    assert whole.startswith(f"set {scrfd} was aligned by scrfd")
    assert tar.startswith(f"set {scrfd}/x-000000.tar was aligned by scrfd")


def test_sources_of_galleries_tell_their_aligner():
    assert source_aligner({"align": False}) is None
    assert source_aligner({"align": True}).name == "mtcnn", "those of earlier versions"
    detector = {"path": "net.onnx", "name": "scrfd", "sha256": "b" * 64}
    assert source_aligner({"align": True, "detector": detector}) == SCRFD
    assert source_aligner({"align": True, "detector": {"path": 3}}) is None
